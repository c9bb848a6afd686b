# An initramfs that reaches a shell in a few seconds, with the golden image's
# kernel: as it is for tests that need no tools, or on the golden root.
#
# out/initrd.img
#
# needs: golden

need modprobe cpio tar
golden=$("$here/build" golden)

mkdir -p tree/{bin,modules,usr/lib/cowblk-guest} source
tar -xf "$golden/modules.tar" -C source
version=$(ls source/lib/modules)
depmod -b source "$version"
for module in virtio_pci virtio_blk ext4; do
    modprobe -d source -S "$version" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' >paths
while read -r path; do
    cp "$path" tree/modules/
    echo "/modules/${path##*/}"
done <paths >tree/modules.list
cp "$golden/busybox" tree/bin/busybox
cp "$here/quick/init" tree/init
cp "$here/golden/agent" tree/usr/lib/cowblk-guest/agent
(cd tree && find . | cpio --quiet --create --format=newc --owner=0:0) >out/initrd.img
