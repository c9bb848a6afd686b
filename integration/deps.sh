#!/bin/bash
# Installs the Debian packages that the demo and the tests use, as root or with
# sudo. If neither is possible it prints the missing packages and fails.
set -euo pipefail

packages=(
    qemu-system-x86 qemu-utils qemu-system-common ovmf           # guests; qemu-storage-daemon
    libvirt-daemon-system libvirt-clients libxml2-utils          # libvirt; virt-xml-validate
    mmdebstrap e2fsprogs fdisk dosfstools mtools cpio kmod zstd  # images
    fakeroot uidmap                                              # images without root
    libnbd-bin python3-libnbd socat jq fio strace python3        # clients, system call counts, the store reader
    xfsprogs btrfs-progs                                         # file systems of the outage tests
)

missing=()
for p in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if [ "$(id -u)" = 0 ]; then
    sudo=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo=(sudo -n)
else
    echo "These Debian packages are missing; as root run:" >&2
    echo "  apt-get update && ${install[*]}" >&2
    exit 1
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Waits while another process holds apt's lock.
"${sudo[@]}" apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "${install[@]:1}" >>"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    exit 1
}
