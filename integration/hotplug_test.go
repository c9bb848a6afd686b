//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"cowblk/integration/harness"
)

// monitorFor adds a second monitor, for cowblk, to a machine and returns its address.
func (e *env) monitorFor(o *harness.MachineOptions) (address string) {
	path := filepath.Join(e.dir, "cowblk.qmp")
	o.Extra = append(o.Extra, "-qmp", "unix:"+path+",server=on,wait=off")
	return "unix:" + path
}

// A guest that supports hot-plugging gets and returns a disk repeatedly. A guest that does not
// release the disk keeps it and loses nothing.
func TestAttachDetach(t *testing.T) {
	onEach(t, everyQEMU(), func(t *testing.T, e *env, qemu harness.QEMU) {
		disk := e.disk("disk", "--size", "64M")
		s := e.serve(disk)
		o := harness.MachineOptions{QEMU: qemu, Boot: harness.BootInitramfs, MemoryMiB: 256}
		address := e.monitorFor(&o)
		m := e.boot(o)
		for number := range rounds {
			var made struct{ ID string }
			e.must(suite.store.JSON(e.ctx, &made, "attach", disk, "--qmp", address))
			if made.ID == "" {
				t.Error("attach reported no device")
			}
			e.run(m, counter(number))
			e.cowblk("detach", disk, "--qmp", address, "--timeout", "1m")
			e.run(m, `for try in $(seq 100); do [ ! -b /dev/vda ] && exit 0; sleep 0.1; done; ls /dev/vd*; exit 1`)
		}
		e.must(m.PowerOff(e.ctx))
		e.stopServer(s)
	})
}

// The hooks for reset and shutdown of the guest promote the disk: each boot's changes get a layer
// of their own, and the tags hold what the guest had written by then.
func TestHooksKeepEachBoot(t *testing.T) {
	for _, name := range onQEMUs(harness.Debian12Backports, harness.DebianUnstable) {
		t.Run("QEMU of "+name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			qemu := e.qemu(name)
			disk := e.disk("disk", "--size", "64M")
			o := harness.MachineOptions{QEMU: qemu, Boot: harness.BootInitramfs, MemoryMiB: 256}
			address := e.monitorFor(&o)
			socket := e.socket(disk)
			b, err := harness.StartBackend(e.ctx, suite.store.Cmd("serve", disk, "--socket-path",
				socket,
				"--qmp", address, "--promote-on", "RESET,SHUTDOWN,GUEST_PANICKED",
				"--promote-min-interval", "1s", "--keep", "10"), socket)
			e.must(err)
			s := e.watch(b)
			o.Disks = []string{s.Socket}

			// tag waits for the tag that an event's hook makes.
			tag := func(event string) string {
				t.Helper()
				form := regexp.MustCompile(event + `-[0-9]{8}T[0-9]{6}Z`)
				for {
					if found := form.FindString(e.cowblk("info", disk)); found != "" {
						return found
					}
					select {
					case <-time.After(100 * time.Millisecond):
					case <-e.ctx.Done():
						t.Fatalf("no tag for %s\n%s", event, s.Output())
					}
				}
			}
			m := e.boot(o)
			e.run(m, counter(0))
			e.must(m.Send("reboot -f"))
			reset := tag("reset")
			e.ready(m)
			e.run(m, counter(1))
			e.must(m.PowerOff(e.ctx))
			shutdown := tag("shutdown")
			e.stopServer(s)

			o = harness.MachineOptions{QEMU: qemu, Boot: harness.BootInitramfs, MemoryMiB: 256}
			for i, tag := range []string{reset, shutdown} {
				clone := e.name(fmt.Sprint("clone", i))
				e.cowblk("create", clone, "--from", disk+"@"+tag)
				o.Disks = append(o.Disks, e.serve(clone).Socket)
			}
			m = e.boot(o)
			if got := e.run(m, `head -n1 /dev/vda; head -n1 /dev/vdb`); got != "1\n2" {
				t.Errorf("%s and %s hold %q, want 1 and 2", reset, shutdown, got)
			}
			e.must(m.PowerOff(e.ctx))
		})
	}
}
