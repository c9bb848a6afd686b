//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cowblk/integration/harness"
)

// deepJobs keeps up to 300 requests in flight on each of three disks, more than the queue size of
// two of them, and verifies what it wrote: a file on vda, vdb and vdc. It runs until /run/stop
// exists. Without an I/O scheduler the disk's queue depth is that of its ring.
const deepJobs = `
set -e
for disk in vda vdb vdc; do
	echo none >/sys/block/$disk/queue/scheduler
	echo "$disk: ring of $(cat /sys/block/$disk/queue/nr_requests)"
	file=/dev/$disk
	[ $disk != vda ] || file=/root/area
	cat >/run/$disk.fio <<JOB
[$disk]
filename=$file
direct=1
ioengine=libaio
iodepth=300
iodepth_batch_submit=64
size=16M
rw=randwrite
bs=4k
randrepeat=0
verify=crc32c
verify_fatal=1
verify_backlog=1024
JOB
	cat >/run/$disk.load <<LOAD
passes=0
while [ ! -e /run/stop ]; do
	fio --output=/run/$disk.out /run/$disk.fio >/run/$disk.err 2>&1 || { cat /run/$disk.err; tail -n 40 /run/$disk.out; exit 1; }
	passes=\$((passes + 1))
done
echo "$disk: \$passes passes"
LOAD
	(set +e; sh /run/$disk.load >/run/$disk.result 2>&1; echo "ended with $?" >>/run/$disk.result) </dev/null >/dev/null 2>&1 &
done
`

// deepEnd stops the load and fails if fio or the kernel reported an error.
const deepEnd = `
touch /run/stop
for disk in vda vdb vdc; do
	while ! grep -q ended /run/$disk.result; do sleep 0.2; done
	grep -q 'ended with 0' /run/$disk.result || { cat /run/$disk.result; dmesg | tail -n 30; exit 1; }
	head -n 1 /run/$disk.result
done
if dmesg | grep -iE 'I/O error|vd[abc].*(error|timeout)|not a head'; then exit 1; fi
`

// A guest on every QEMU boots, writes and verifies on disks of the queue sizes 256, 128 (the
// default) and 1,024. Meanwhile the back-end is killed, taken over, promoted, and killed during a
// promotion, and the machine is stopped and continued. Every ring must be tracked in the in-flight
// buffer. QEMU of Debian 13 gives every disk rings of 1,024 descriptors, whatever its queue size;
// SeaBIOS uses 256 of them, Linux all.
func TestEveryQEMU(t *testing.T) {
	onEach(t, everyQEMU(), func(t *testing.T, e *env, qemu harness.QEMU) {
		disks := []string{e.disk("root", "--from", imageGolden), e.disk("data", "--size", "64M"),
			e.disk("large", "--size", "64M")}
		var servers []*server
		var sockets []string
		for _, d := range disks {
			s := e.serve(d)
			servers, sockets = append(servers, s), append(sockets, s.Socket)
		}
		all := slices.Clone(servers)
		m := e.boot(harness.MachineOptions{QEMU: qemu, Boot: harness.BootQuick, CPUs: 2, Queues: 1,
			MemoryMiB: 512,
			Disks:     sockets, QueueSize: []int{256, 0, 1024}, ReconnectMS: 50})
		rings := e.run(m, deepJobs)
		each := func(do func(i int, disk string)) {
			t.Helper()
			for i, d := range disks {
				e.waitRequests(d, 100)
				do(i, d)
			}
		}
		kill := func(i int, disk string) {
			t.Helper()
			servers[i].stopping.Store(true)
			servers[i].Kill()
			servers[i] = e.serve(disk)
			all = append(all, servers[i])
		}
		each(kill)
		each(func(i int, disk string) {
			old := servers[i]
			old.stopping.Store(true)
			p, err := harness.StartProcess("back-end of "+disk, suite.store.Cmd("serve", disk,
				"--takeover"))
			e.must(err)
			servers[i] = e.watch(&harness.Backend{Process: p, Socket: old.Socket})
			all = append(all, servers[i])
			if err := old.Wait(e.ctx); err != nil {
				t.Fatalf("takeover of %s: the old process: %v\n%s\n%s", disk, err, old.Output(),
					p.Output())
			}
		})
		each(func(_ int, disk string) { e.cowblk("promote", disk, "--tag", "undisturbed") })
		each(func(i int, disk string) {
			promotion, err := harness.StartProcess("promote", suite.store.Cmd("promote", disk,
				"--tag", "killed"))
			e.must(err)
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
			kill(i, disk)
			_ = promotion.Wait(e.ctx) // success and failure are both correct
		})
		each(func(int, string) {
			e.must(m.Command("stop", nil))
			e.must(m.Command("cont", nil))
		})
		each(func(int, string) {}) // the guest still works
		output := e.run(m, deepEnd)
		e.must(m.PowerOff(e.ctx))
		for _, s := range all {
			// The attribute of the warning about a ring outside the in-flight buffer.
			if text := s.Output(); strings.Contains(text, "buffer_descriptors=") {
				t.Errorf("a ring was not tracked:\n%s", text)
			}
		}
		for _, s := range servers {
			e.stopServer(s)
		}
		t.Logf("QEMU %s; %s", qemu.Version, strings.ReplaceAll(fmt.Sprint(rings, "\n", output),
			"\n", "; "))
	})
}
