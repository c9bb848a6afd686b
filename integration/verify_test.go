//go:build integration

package integration

import (
	"fmt"
	"testing"

	"cowblk/integration/harness"
)

// verifyJobs works on five areas in a row. Four processes on four queues write to four areas at
// random offsets, in sizes of 512 bytes to 1 MiB, with fsyncs, and read everything back. A fifth
// process trims all of the first area, which must hold zeros afterwards. Arguments: the offset of
// the first area, and the size of each, in MiB.
const verifyJobs = `
at=%[1]d size=%[2]d
cat >/tmp/verify.fio <<JOBS
[global]
filename=/dev/vdb
direct=1
ioengine=libaio
iodepth=16
size=${size}M
rw=randwrite
bssplit=512/15:1k/5:4k/40:7k/5:16k/15:64k/10:256k/7:1m/3
fsync=50
randseed=$((at + 1))
verify=crc32c
verify_fatal=1
verify_backlog=256
[write-1]
offset=$((at + size))M
[write-2]
offset=$((at + 2 * size))M
[write-3]
offset=$((at + 3 * size))M
[write-4]
offset=$((at + 4 * size))M
[trim]
offset=${at}M
rw=randtrim
bssplit=4k/50:64k/40:1m/10
verify=0
fsync=0
JOBS
fio --output=/tmp/verify.out /tmp/verify.fio >/tmp/verify.err 2>&1 || {
	cat /tmp/verify.err; tail -n 60 /tmp/verify.out; exit 1
}
grep -E 'groupid|issued rwts' /tmp/verify.out
cmp -i $((at * 1048576)):0 -n $((size * 1048576)) /dev/vdb /dev/zero
`

// content prints a digest of the part of the disk that the jobs write to.
const content = `head -c %dM /dev/vdb | sha256sum`

// fio verifies its data on a stack of three layers, each of which owns some of it, over a base with
// a file system; also after a restart of the back-end.
func TestVerifyOnThreeLayers(t *testing.T) {
	for _, name := range onQEMUs(harness.Debian12, harness.Debian13) {
		area := 8 // MiB
		if name == harness.Debian12 {
			area = 24
		}
		t.Run("QEMU of "+name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			qemu := e.qemu(name)
			root, data := e.disk("root", "--from", imageGolden), e.disk("data", "--from",
				imageGolden)
			session := func(work func(m *harness.Machine)) {
				servers := []*server{e.serve(root), e.serve(data)}
				m := e.boot(harness.MachineOptions{QEMU: qemu, Boot: harness.BootQuick, CPUs: 4,
					MemoryMiB: 768,
					Disks:     []string{servers[0].Socket, servers[1].Socket}})
				if queues := e.run(m, "ls /sys/block/vdb/mq | wc -l"); queues != "4" {
					t.Errorf("the guest uses %s queues; expected 4", queues)
				}
				work(m)
				e.must(m.PowerOff(e.ctx))
				for _, s := range servers {
					e.stopServer(s)
				}
			}
			var before string
			digest := fmt.Sprintf(content, 7*area)
			for layer := range 3 {
				if layer > 0 {
					e.cowblk("promote", data, "--tag", fmt.Sprint("layer", layer))
				}
				session(func(m *harness.Machine) {
					t.Logf("layer %d\n%s", layer+1, e.run(m, fmt.Sprintf(verifyJobs, layer*area,
						area)))
					if layer == 2 {
						before = e.run(m, digest)
					}
				})
			}
			var info harness.Disk
			e.must(suite.store.JSON(e.ctx, &info, "info", data))
			if len(info.Usage) != 3 {
				t.Fatalf("the stack has %d layers; expected 3", len(info.Usage))
			}
			for i, u := range info.Usage {
				if u.Owned == 0 {
					t.Errorf("layer %d owns nothing: the test needs a stack", i+1)
				}
			}
			session(func(m *harness.Machine) {
				if now := e.run(m, digest); now != before {
					t.Errorf("content before the restart %s, after it %s", before, now)
				}
				e.run(m, fmt.Sprintf(verifyJobs, 0, area))
			})
		})
	}
}
