# Shell functions shared by the recipes in this folder; sourced, never run.

# The Debian release that the golden image, its kernel and QEMU 7.2 come from.
release=bookworm
# The release after it, and the suite that Debian's newest packages are in.
next=trixie
unstable=sid

say() { echo "$*" >&2; }

die() {
    say "artefact: $*"
    exit 1
}

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null ||
            PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
            die "$tool is not installed; run 'make deps' to install what is missing"
    done
}

# debian_sources SUITE… prints a sources.list that reaches the given suites
# through the mirror (or local proxy, or snapshot) that this machine's own apt
# is configured to use. Backports and later suites, which few have configured,
# are looked for where the release itself lives, and the next release's security
# updates where the release's are. Any other suite that apt has no source for is
# left out.
debian_sources() {
    # Without release info: lists that were never fetched, or were removed, do not hide a source.
    local known site security suite
    known=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages')
    site=$(awk -v r="$release" '$1 == r { print $2; exit }' <<<"$known")
    [ -n "$site" ] || die "apt on this machine has no source for Debian $release:" \
        "the recipes need a Debian 12 machine, or a $release entry in /etc/apt/sources.list"
    security=$(awk -v r="$release-security" '$1 == r { print $2; exit }' <<<"$known")
    for suite in "$release-backports" "$next" "$next-updates" testing "$unstable"; do
        known+=$'\n'"$suite $site"
    done
    [ -z "$security" ] || known+=$'\n'"$next-security $security"
    for suite in "$@"; do
        awk -v r="$suite" '$1 == r { print "deb", $2, r, "main"; exit }' <<<"$known"
    done
}

# unpack_packages "SUITE…" PACKAGE… unpacks packages of the suites, the newest
# version of each, and all that they depend on, into out/root. Nothing is
# installed: apt works on a private and empty package database. Returns non-zero if
# that fails, for callers that have another suite to try.
unpack_packages() {
    local suites=$1 apt=$PWD/apt target=() packages deb
    shift
    rm -rf "$apt" out/root
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,etc/preferences.d,debs} out/root
    # shellcheck disable=SC2086 # a list
    debian_sources $suites >"$apt/etc/sources.list"
    : >"$apt/state/status"
    # apt's download helper runs as another user where apt runs as root.
    chmod -R a+rX "$apt"
    private() {
        apt-get -q \
            -o Dir::Etc::sourcelist="$apt/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null \
            -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$apt/etc/preferences.d" \
            -o Dir::State="$apt/state" -o Dir::State::status="$apt/state/status" -o Dir::Cache="$apt/cache" \
            -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Acquire::Retries=3 -o Acquire::Languages=none "$@"
    }
    private update >&2 || return 1
    # Backports are used only where apt is told to.
    case $suites in *-backports) target=(-t "${suites##* }") ;; esac
    packages=$(private --simulate --no-install-recommends "${target[@]}" install "$@" |
        sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1=\2/p') || return 1
    [ -n "$packages" ] || {
        say "apt found nothing to fetch for $* from $suites"
        return 1
    }
    say "fetching" $packages
    (cd "$apt/debs" && private download $packages >&2) || return 1
    for deb in "$apt"/debs/*.deb; do
        dpkg-deb --extract "$deb" out/root || return 1
    done
    rm -rf "$apt" out/root/usr/share/{doc,man,locale,info}
}

# unpacked_program PATH [ARGUMENT…] makes out/NAME, which runs the program of
# that path in out/root with the C library, the other libraries and QEMU's
# modules from there. ARGUMENTs come before the caller's and may name $root.
unpacked_program() {
    local path=$1 loader arch
    shift
    arch=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
    # The file: a link to it may lead out of out/root.
    loader=$(cd out/root && find . -type f -name 'ld-linux-*.so.*' -print -quit)
    [ -n "$loader" ] || {
        say "no dynamic loader among the unpacked packages"
        return 1
    }
    cat >"out/${path##*/}" <<RUN
#!/bin/sh
# Runs the unpacked program with the libraries and modules of its own release.
root=\$(dirname "\$(readlink -f "\$0")")/root
export QEMU_MODULE_DIR="\$root/usr/lib/$arch/qemu"
exec "\$root/${loader#./}" \\
    --library-path "\$root/lib/$arch:\$root/usr/lib/$arch:\$root/lib:\$root/usr/lib" \\
    "\$root/$path" $* "\$@"
RUN
    chmod +x "out/${path##*/}"
}

# unpack_qemu "SUITE…" unpacks QEMU and its firmware: out/qemu-system-x86_64.
unpack_qemu() {
    unpack_packages "$1" qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu || return 1
    unpacked_program usr/bin/qemu-system-x86_64 \
        '-L "$root/usr/share/qemu"' '-L "$root/usr/share/seabios"' '-L "$root/usr/lib/ipxe/qemu"' || return 1
    say "$1: $(out/qemu-system-x86_64 -version | head -n 1)"
    out/qemu-system-x86_64 -version | grep -q '^QEMU emulator version' || return 1
}
