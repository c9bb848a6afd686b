# A Debian disk image that boots by UEFI (systemd-boot) and with -kernel, over
# virtio.
#
# out/golden.raw     GPT: 1 = EFI system partition, 2 = ext4 root, label "golden"
# out/golden.qcow2   the same, as a person would download it
# out/vmlinuz, out/initrd.img, out/modules.tar   of the image's one kernel
# out/root.place     where the root lies in golden.raw: start and size in MiB
#
# No loop device and no mount: file systems are filled by mke2fs and mtools.

need mmdebstrap mke2fs sfdisk mkfs.vfat mcopy qemu-img
recipe=$here/golden

packages=systemd-sysv,udev,dbus,kmod,procps,util-linux,linux-image-cloud-amd64,initramfs-tools
packages=$packages,extlinux,systemd-boot-efi,busybox-static,fdisk
packages=$packages,fio,e2fsprogs,xfsprogs,btrfs-progs,qemu-guest-agent,sqlite3,libnbd-bin

exclude=()
for folder in doc man locale info; do
    exclude+=("--dpkgopt=path-exclude=/usr/share/$folder/*")
done
debian_sources "$release" "$release-updates" "$release-security" |
    mmdebstrap --variant=minbase --include="$packages" "${exclude[@]}" \
        --aptopt='Acquire::Retries "3"' \
        --extract-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"' \
        --extract-hook='printf "MODULES=list\nCOMPRESS=zstd\n" >"$1/etc/initramfs-tools/conf.d/golden"' \
        --extract-hook="cp $recipe/initramfs-hook \"\$1/etc/initramfs-tools/hooks/golden\"" \
        --customize-hook="$recipe/customize \"\$1\"" \
        "$release" tree.tar -

# Owners and device nodes survive without root by fakeroot.
as_root=()
[ "$(id -u)" = 0 ] || { need fakeroot; as_root=(fakeroot); }

mib=1048576
esp_mib=96 root_mib=2560
image=out/golden.raw
truncate -s $(((1 + esp_mib + root_mib + 1) * mib)) "$image"
sfdisk --quiet "$image" <<TABLE
label: gpt
start=1MiB, size=${esp_mib}MiB, type=uefi, name=esp
start=$((1 + esp_mib))MiB, size=${root_mib}MiB, type=linux, name=root
TABLE

# The recipe bios.sh boots this file system, too, and extlinux reads ext4 only
# without the 64bit feature.
export root_mib esp_mib mib image
"${as_root[@]}" bash -euo pipefail -c '
    mkdir tree && tar -xf tree.tar -C tree
    mke2fs -q -t ext4 -O ^64bit -L golden -d tree \
        -E offset=$(((1 + esp_mib) * mib)),lazy_itable_init=0,lazy_journal_init=0 "$image" ${root_mib}M
'
version=$(ls tree/lib/modules)
cp "tree/boot/vmlinuz-$version" out/vmlinuz
cp "tree/boot/initrd.img-$version" out/initrd.img
tar -C tree -cf out/modules.tar "lib/modules/$version"
cp tree/bin/busybox out/busybox
echo "$((1 + esp_mib)) $root_mib" >out/root.place

truncate -s ${esp_mib}M esp
mkfs.vfat -F 32 -s 1 -n ESP esp >/dev/null
esp() { "$1" -i esp "${@:2}"; }
esp mmd ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
esp mcopy tree/usr/lib/systemd/boot/efi/systemd-bootx64.efi ::/EFI/BOOT/BOOTX64.EFI
esp mcopy out/vmlinuz out/initrd.img ::/
printf 'default debian.conf\ntimeout 0\n' >loader.conf
cat >debian.conf <<ENTRY
title Debian
linux /vmlinuz
initrd /initrd.img
options root=LABEL=golden ro console=ttyS0 loader=systemd-boot
ENTRY
esp mcopy loader.conf ::/loader/
esp mcopy debian.conf ::/loader/entries/
dd if=esp of="$image" bs=$mib seek=1 conv=notrunc,sparse status=none

qemu-img convert -f raw -O qcow2 "$image" out/golden.qcow2
