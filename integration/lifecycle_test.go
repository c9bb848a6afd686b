//go:build integration

package integration

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// Repetitions of each event of a machine's life: cheap events, and events that need a boot.
const (
	rounds     = 10
	bootRounds = 3
)

// counter returns a script that reads the number at the start of the disk, compares it with number,
// and writes the next. Every round proves that the write of the round before reached the disk, and
// that reads and writes still work.
func counter(number int) string {
	return fmt.Sprintf(`
disk=/dev/vda
for try in $(seq 100); do [ -b $disk ] && break; sleep 0.1; done
found=$(dd if=$disk bs=512 count=1 2>/dev/null | tr -d '\0')
[ "${found:-0}" = %[1]d ] || { echo "found '$found' on the disk, expected %[1]d"; exit 1; }
{ echo $((%[1]d + 1)); dd if=/dev/zero bs=512 count=1 2>/dev/null; } | dd of=$disk bs=512 count=1 iflag=fullblock conv=fsync 2>/dev/null
`, number)
}

// One back-end process survives everything that QEMU, its operator and its guest do to the device,
// repeatedly.
func TestLifecycle(t *testing.T) {
	onEach(t, onQEMUs(harness.Debian12, harness.Debian13), func(t *testing.T, e *env,
		qemu harness.QEMU) {
		s := e.serve(e.disk("disk", "--size", "64M"))
		options := harness.MachineOptions{QEMU: qemu, Boot: harness.BootInitramfs, CPUs: 2,
			MemoryMiB: 256, Disks: []string{s.Socket}}
		m := e.boot(options)
		number := 0
		next := func(event string) {
			t.Helper()
			if _, err := m.Run(e.ctx, counter(number)); err != nil {
				t.Fatalf("after %s, number %d: %v", event, number, err)
			}
			number++
		}
		next("the first boot")
		for range rounds {
			e.must(m.Command("stop", nil))
			e.must(m.Command("cont", nil))
			next("stop and cont")
		}
		for range bootRounds {
			e.must(m.Command("system_reset", nil))
			e.ready(m)
			next("system_reset")
		}
		for range 2 {
			e.must(m.Send("reboot -f"))
			e.ready(m)
			next("a reboot by the guest")
		}
		for range rounds {
			e.unplug(m, 0)
			e.plug(m, qemu, 0, s.Socket, 2)
			next("unplugging and plugging in")
		}
		for range bootRounds {
			e.must(m.Quit(e.ctx))
			m = e.boot(options)
			next("a new QEMU")
		}
		e.must(m.PowerOff(e.ctx))
		e.stopServer(s)
		t.Logf("%d numbers written and found", number)
	})
}

// unplug removes a disk from a running machine and waits until QEMU has released it.
func (e *env) unplug(m *harness.Machine, i int) {
	e.Helper()
	id := fmt.Sprint("disk", i)
	e.must(m.Command("device_del", map[string]any{"id": id}))
	e.must(m.Event(e.ctx, "DEVICE_DELETED", map[string]any{"device": id}))
	e.must(m.Command("chardev-remove", map[string]any{"id": fmt.Sprint("char", i)}))
}

// plug adds a disk to a running machine of QEMU q.
func (e *env) plug(m *harness.Machine, q harness.QEMU, i int, socket string, queues int) {
	e.Helper()
	reconnect, value, _ := strings.Cut(q.Reconnect(1000), "=")
	again, err := strconv.Atoi(value)
	e.must(err)
	char := fmt.Sprint("char", i)
	e.must(m.Command("chardev-add", map[string]any{"id": char, "backend": map[string]any{
		"type": "socket",
		"data": map[string]any{
			"addr":   map[string]any{"type": "unix", "data": map[string]any{"path": socket}},
			"server": false, reconnect: again,
		},
	}}))
	e.must(m.Command("device_add", map[string]any{"driver": "vhost-user-blk-pci",
		"id":      fmt.Sprint("disk", i),
		"chardev": char, "bus": fmt.Sprint("port", i), "num-queues": queues}))
}

// loadJobs keeps a disk busy and verifies every block that it wrote; it runs until /tmp/stop
// exists.
const loadJobs = `
cat >/tmp/load.fio <<JOBS
[global]
filename=/dev/vdb
direct=1
ioengine=libaio
iodepth=8
rw=randwrite
bssplit=512/20:4k/60:64k/20
size=4M
verify=crc32c
verify_fatal=1
fsync=20
[one]
offset=0
[two]
offset=64M
JOBS
passes=0
while [ ! -e /tmp/stop ]; do
	fio --output=/tmp/load.out /tmp/load.fio >/tmp/load.err 2>&1 || { cat /tmp/load.err; tail -n 40 /tmp/load.out; exit 1; }
	passes=$((passes + 1))
done
echo "$passes passes"
`

// QMP stop and cont under load neither lose nor repeat a request.
func TestStopAndContUnderLoad(t *testing.T) {
	onEach(t, onQEMUs(harness.Debian13), func(t *testing.T, e *env, qemu harness.QEMU) {
		root, data := e.serve(e.disk("root", "--from", imageGolden)),
			e.serve(e.disk("data", "--size", "1G"))
		m := e.boot(harness.MachineOptions{QEMU: qemu, Boot: harness.BootQuick, CPUs: 2,
			MemoryMiB: 768, Disks: []string{root.Socket, data.Socket}})
		e.run(m, "cat >/tmp/load <<'SCRIPT'\n"+loadJobs+
			"\nSCRIPT\n(sh /tmp/load >/tmp/load.result 2>&1; echo \"status $?\" >>/tmp/load.result; touch /tmp/done) </dev/null >/dev/null 2>&1 &")
		for range 50 {
			e.must(m.Command("stop", nil))
			e.must(m.Command("cont", nil))
			e.run(m, "true") // proves that the guest ran in between
		}
		t.Log(e.run(m, "touch /tmp/stop; while [ ! -e /tmp/done ]; do sleep 0.2; done; grep -q 'status 0' /tmp/load.result || { cat /tmp/load.result; exit 1; }; cat /tmp/load.result"))
		e.must(m.PowerOff(e.ctx))
	})
}
