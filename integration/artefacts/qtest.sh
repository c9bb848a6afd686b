# QEMU's own tests of devices, and a QEMU that they can drive, built from the
# next release's source package in a chroot of that release (10 minutes). Debian's
# binary packages lack the accelerator "qtest".
#
# out/qos-test             the tests; QEMU's documentation calls the suite qtest
# out/qemu-system-x86_64   QEMU, without modules, with Debian's firmware

need apt-get dpkg-deb mmdebstrap

suites="$next-security $next-updates $next"
packages=gcc,libc6-dev,dpkg-dev,patch,xz-utils,ninja-build,meson,python3-venv,pkgconf,libglib2.0-dev,flex,bison
# shellcheck disable=SC2086 # a list
debian_sources $suites >binaries
{ cat binaries; sed 's/^deb /deb-src /' binaries; } |
    mmdebstrap --variant=minbase --include="$packages" --aptopt='Acquire::Retries "3"' \
        --customize-hook="cp $here/qtest/make \"\$1/make\" && chroot \"\$1\" bash /make" \
        --customize-hook='copy-out /qos-test /qemu-system-x86_64 .' \
        "$next" /dev/null -

# What the two need of the release, and the firmware.
unpack_qemu "$suites" || die "QEMU of $next could not be unpacked"
mv qos-test qemu-system-x86_64 out/root/usr/bin/
unpacked_program usr/bin/qos-test
QTEST_QEMU_BINARY=$PWD/out/qemu-system-x86_64 QTEST_QEMU_STORAGE_DAEMON_BINARY=true out/qos-test -l >tests
grep -q vhost-user-blk-tests tests || die "no tests of vhost-user-blk in what was built: $(tail -n 3 tests)"
