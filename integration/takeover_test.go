//go:build integration

package integration

import (
	"testing"

	"cowblk/integration/harness"
)

// A new process takes over the disk of a working guest from the old one, repeatedly, with a
// promotion in between. The guest sees no error.
func TestTakeoverUnderFio(t *testing.T) {
	onEach(t, onQEMUs(harness.Debian12, harness.DebianUnstable), func(t *testing.T, e *env,
		qemu harness.QEMU) {
		root, data := e.serve(e.disk("root", "--from", imageGolden)), e.disk("data", "--size", "1G")
		s := e.serve(data)
		m := e.boot(harness.MachineOptions{QEMU: qemu, Boot: harness.BootQuick, CPUs: 2,
			MemoryMiB: 768,
			Disks:     []string{root.Socket, s.Socket}, ReconnectMS: 20})
		e.run(m, killJobs)
		for i := range 4 {
			e.waitRequests(data, 100)
			if i == 2 {
				e.cowblk("promote", data, "--tag", "between")
			}
			s.stopping.Store(true)
			p, err := harness.StartProcess("back-end of "+data, suite.store.Cmd("serve", data,
				"--takeover"))
			e.must(err)
			next := e.watch(&harness.Backend{Process: p, Socket: s.Socket})
			if err := s.Wait(e.ctx); err != nil {
				t.Fatalf("takeover %d: the old process: %v\n%s\n%s", i, err, s.Output(), p.Output())
			}
			s = next
		}
		e.waitRequests(data, 100)
		t.Log(e.run(m, killEnd))
		e.must(m.PowerOff(e.ctx))
		e.stopServer(s)
		e.stopServer(root)
	})
}
