# The golden root as a disk that boots by BIOS, with extlinux.
#
# out/bios.raw   one ext4 file system, no partitions
#
# No partitions, because a boot sector that loads another over itself does not
# work under emulation with vhost-user: QEMU's translator does not see that
# another process wrote to memory which it had translated already.
#
# needs: golden

need qemu-system-x86_64
golden=$("$here/build" golden)

read -r at size <"$golden/root.place"
dd if="$golden/golden.raw" of=out/bios.raw bs=1M skip="$at" count="$size" conv=sparse status=none

# extlinux can be installed on a mounted file system only: the guest mounts it.
timeout 300 qemu-system-x86_64 -accel tcg -cpu max -m 512 -nodefaults -display none -no-reboot \
    -serial file:finish.log -kernel "$golden/vmlinuz" -initrd "$golden/initrd.img" \
    -append "root=/dev/vda ro console=ttyS0 panic=-1 init=/usr/lib/cowblk-guest/finish" \
    -drive "file=out/bios.raw,format=raw,if=virtio"
grep -q 'GOLDEN FINISHED' finish.log || {
    tail -n 40 finish.log
    die "the golden root did not boot to install its boot loader"
}
