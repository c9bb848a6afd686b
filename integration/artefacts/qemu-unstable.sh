# The newest QEMU that Debian has and that can be unpacked at the moment:
# out/qemu-system-x86_64.

need apt-get dpkg-deb

unpack_qemu "$unstable" || unpack_qemu testing ||
    die "QEMU could be unpacked neither from $unstable nor from testing"
