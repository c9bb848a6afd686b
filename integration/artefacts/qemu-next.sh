# QEMU of the next Debian release: out/qemu-system-x86_64.

need apt-get dpkg-deb

unpack_qemu "$next-security $next-updates $next" ||
    die "QEMU of $next could not be unpacked"
