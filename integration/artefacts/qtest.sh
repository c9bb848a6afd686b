# QEMU's own tests of devices, built from the next release's source package in a
# chroot of that release (minutes).
#
# out/qos-test   runs them; QEMU's documentation calls the suite qtest

need apt-get dpkg-deb mmdebstrap

suites="$next-security $next-updates $next"
packages=gcc,libc6-dev,dpkg-dev,patch,xz-utils,ninja-build,meson,python3-venv,pkgconf,libglib2.0-dev,flex,bison
# shellcheck disable=SC2086 # a list
debian_sources $suites >binaries
{ cat binaries; sed 's/^deb /deb-src /' binaries; } |
    mmdebstrap --variant=minbase --include="$packages" --aptopt='Acquire::Retries "3"' \
        --customize-hook="cp $here/qtest/make \"\$1/make\" && chroot \"\$1\" bash /make" \
        --customize-hook='copy-out /qos-test .' \
        "$next" /dev/null -

unpack_packages "$suites" libglib2.0-0t64 || die "the libraries of qos-test could not be unpacked"
mkdir -p out/root/usr/bin
mv qos-test out/root/usr/bin/
unpacked_program usr/bin/qos-test
out/qos-test --help >&2
