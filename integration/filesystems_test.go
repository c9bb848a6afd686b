//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// churn makes a file system, mounts it with discard, fills it, removes and overwrites part of it
// several times, trims it, and writes a list of checksums. The file system must be clean, must
// match the list after a remount, and must be clean again. Arguments: file system type, command
// that makes it, command that checks it.
const churn = `
set -e
mount_it() { mount -t %[1]s -o discard /dev/vdb /mnt; }
modprobe %[1]s 2>/dev/null || true
%[2]s /dev/vdb >/dev/null
mount_it
for round in 1 2 3; do
	mkdir -p /mnt/$round
	cp -a /usr/bin /etc /mnt/$round/
	dd if=/dev/urandom of=/mnt/$round/big bs=1M count=24 status=none
	fallocate --punch-hole --offset 4MiB --length 3MiB /mnt/$round/big
	dd if=/dev/urandom of=/mnt/$round/big bs=4k count=300 seek=700 conv=notrunc,fsync status=none
	find /mnt/$round -name '*[aeiou]' -type f -delete
	[ $round = 1 ] || rm -r /mnt/$((round - 1))/bin
	truncate -s 1M /mnt/$round/bin/perl
	sync
done
fstrim /mnt
cd /mnt && find . -type f -print0 | xargs -0 sha256sum >/tmp/sums && cd /
umount /mnt
%[3]s /dev/vdb
mount_it
(cd /mnt && sha256sum --quiet -c /tmp/sums)
umount /mnt
%[3]s /dev/vdb
wc -l </tmp/sums
`

// File systems that the guest makes, uses and trims are clean.
func TestFileSystems(t *testing.T) {
	for _, c := range []struct{ fs, make, check string }{
		{"ext4", "mkfs.ext4 -q -F", "fsck.ext4 -f -n"},
		{"xfs", "mkfs.xfs -q -f", "xfs_repair -n"},
		{"btrfs", "mkfs.btrfs -q -f", "btrfs check"},
	} {
		t.Run(c.fs, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			root, data := e.serve(e.disk("root", "--from", imageGolden)),
				e.serve(e.disk("data", "--size", "1G"))
			m := e.boot(harness.MachineOptions{QEMU: e.qemu(harness.Debian13),
				Boot: harness.BootQuick, CPUs: 2, MemoryMiB: 768, Disks: []string{root.Socket,
					data.Socket}})
			out := e.run(m, fmt.Sprintf(churn, c.fs, c.make, c.check))
			t.Logf("%s files compared after a remount; the checker printed\n%s",
				out[strings.LastIndexByte(out, '\n')+1:], out)
			e.must(m.PowerOff(e.ctx))
			e.stopServer(data)
			e.stopServer(root)
			// The discards must reach the layer: it keeps far less than was written.
			var info harness.Disk
			e.must(suite.store.JSON(e.ctx, &info, "info", e.name("data")))
			if u := info.Head(); u.Allocated == 0 || u.Allocated >= u.Owned {
				t.Errorf("the head owns %d bytes and occupies %d: no discard punched a hole",
					u.Owned, u.Allocated)
			}
		})
	}
}
