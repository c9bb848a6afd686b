# Programs of the next Debian release that reach a vhost-user-blk back-end
# through libblkio.
#
# out/qemu-img, out/qemu-io  with the block driver virtio-blk-vhost-user
# out/nbdkit                 out/plugins/nbdkit-blkio-plugin.so is its plugin

need apt-get dpkg-deb

unpack_packages "$next-security $next-updates $next" qemu-utils qemu-block-extra libblkio1 nbdkit ||
    die "qemu-utils and nbdkit of $next could not be unpacked"
for program in qemu-img qemu-io nbdkit; do
    unpacked_program "usr/bin/$program"
done
mkdir out/plugins
ln -s "../$(cd out && find root/usr/lib -name nbdkit-blkio-plugin.so)" out/plugins/
say "$(out/qemu-img --version | head -n 1), $(out/nbdkit --version)"
