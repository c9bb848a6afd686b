# QEMU of the release's backports: out/qemu-system-x86_64.

need apt-get dpkg-deb

unpack_qemu "$release $release-updates $release-backports" ||
    die "QEMU of $release-backports could not be unpacked"
