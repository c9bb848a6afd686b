# QEMU 10 from bookworm-backports, unpacked beside the installed 7.2.
#
# out/root                 the packages' files
# out/qemu-system-x86_64   runs it with its own libraries and firmware
#
# apt resolves against a private copy of this machine's package database, so
# only what differs from the installed system is fetched, and nothing of the
# system is changed.

need apt-get dpkg-deb qemu-system-x86_64

backports=$release-backports
apt=$PWD/apt
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc/preferences.d,debs} out/root
debian_sources "$release" "$release-updates" "$backports" >"$apt/etc/sources.list"
cp /var/lib/dpkg/status "$apt/state/status"
# apt's download helper runs as another user where apt runs as root.
chmod -R a+rX "$apt"

private() {
    apt-get -q \
        -o Dir::Etc::sourcelist="$apt/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$apt/etc/preferences.d" \
        -o Dir::State="$apt/state" -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Acquire::Retries=3 "$@"
}

private update >&2
packages=$(private --simulate --no-install-recommends -t "$backports" install \
    qemu-system-x86 qemu-system-common qemu-system-data seabios |
    sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1=\2/p')
[ -n "$packages" ] || die "apt found nothing to fetch for qemu-system-x86 from $backports"
say "fetching" $packages
(cd "$apt/debs" && private download $packages >&2)
for deb in "$apt"/debs/*.deb; do
    dpkg-deb --extract "$deb" out/root
done
rm -rf "$apt"

cat >out/qemu-system-x86_64 <<'RUN'
#!/bin/sh
# Runs the unpacked QEMU with its own libraries, modules and firmware first.
root=$(dirname "$(readlink -f "$0")")/root
arch=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
LD_LIBRARY_PATH=$root/lib/$arch:$root/usr/lib/$arch${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
QEMU_MODULE_DIR=$root/usr/lib/$arch/qemu
export LD_LIBRARY_PATH QEMU_MODULE_DIR
exec "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L /usr/share/seabios -L /usr/lib/ipxe/qemu "$@"
RUN
chmod +x out/qemu-system-x86_64
version=$(out/qemu-system-x86_64 -version | head -n 1)
say "$version"
case $version in
*' version 10.'*) ;;
*) die "expected QEMU 10 from $backports, found: $version" ;;
esac
