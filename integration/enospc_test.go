//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/integration/harness"
)

// fillDisk writes more to the disk than the file system has space for, then reads it back past the
// guest's cache.
const fillDisk = `
for try in $(seq 100); do [ -b /dev/vda ] && break; sleep 0.1; done
head -c 25165824 /dev/urandom > /tmp/content
dd if=/tmp/content of=/dev/vda bs=64k conv=fsync 2>/dev/null || { echo "dd failed"; exit 1; }
echo 3 > /proc/sys/vm/drop_caches
a=$(md5sum < /tmp/content)
b=$(head -c 25165824 /dev/vda | md5sum)
[ "$a" = "$b" ] || { echo "wrote $a, read $b"; exit 1; }
if dmesg | grep -i 'error, dev vda'; then exit 1; fi
`

// A guest fills the file system below its disk. The guest is paused, continues by itself when there
// is space, and sees no error.
func TestGuestWaitsForSpace(t *testing.T) {
	onEach(t, everyQEMU(), func(t *testing.T, e *env, qemu harness.QEMU) {
		store, ballast := e.smallStore()
		_, err := store.Run(e.ctx, "create", "vm1", "--size", "64M")
		e.must(err)
		socket, monitor := filepath.Join(e.dir, "vm1.sock"), filepath.Join(e.dir, "cowblk.qmp")
		b, err := harness.StartBackend(e.ctx, store.Cmd("serve", "vm1", "--socket-path", socket,
			"--qmp", "unix:"+monitor), socket)
		e.must(err)
		s := e.watch(b)
		m := e.boot(harness.MachineOptions{
			QEMU: qemu, Boot: harness.BootInitramfs, CPUs: 2, MemoryMiB: 256,
			Disks: []string{socket},
			Extra: []string{"-qmp", "unix:" + monitor + ",server=on,wait=off"},
		})
		filled := make(chan error, 1)
		go func() {
			out, err := m.Run(e.ctx, fillDisk)
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			filled <- err
		}()
		e.must(m.Event(e.ctx, "STOP", nil))
		select {
		case err := <-filled:
			t.Fatalf("the guest finished before there was space: %v", err)
		default:
		}
		e.must(os.Remove(ballast))
		e.must(m.Event(e.ctx, "RESUME", nil))
		e.must(<-filled)
		e.must(m.PowerOff(e.ctx))
		e.waitedForSpace(store, s)
	})
}

// smallStore makes a store on a file system with 16 MiB free; removal of the ballast file frees 32
// MiB more.
func (e *env) smallStore() (store *harness.Store, ballast string) {
	e.Helper()
	small := filepath.Join(e.dir, "fs")
	e.must(os.Mkdir(small, 0o755))
	e.must(unix.Mount("tmpfs", small, "tmpfs", 0, "size=48m"))
	e.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	ballast = filepath.Join(small, "ballast")
	e.must(os.WriteFile(ballast, make([]byte, 32<<20), 0o600))
	store, err := harness.NewStore(filepath.Join(small, "store"))
	e.must(err)
	return store, ballast
}

// waitedForSpace checks that a back-end reported the lack of space and failed no request. It stops
// the back-end.
func (e *env) waitedForSpace(store *harness.Store, s *server) {
	e.Helper()
	var stats []struct {
		Failed uint64 `json:"failed_operations"`
	}
	c, err := control.Dial(filepath.Join(store.Dir, "run", "vm1.ctl"), 10*time.Second)
	e.must(err)
	err = c.Run(e.ctx, "query-cow-stats", nil, &stats)
	e.must(err)
	e.stopServer(s)
	// The attribute of the report about the first waiting request.
	if text := s.Output(); len(stats) != 1 || stats[0].Failed > 0 || !strings.Contains(text,
		"action=") {
		e.Errorf("statistics %+v, log of the back-end:\n%s", stats, text)
	}
}

// The same with a domain of libvirt, which owns the monitor.
func TestDomainWaitsForSpace(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	store, ballast := e.smallStore()
	run := func(args ...string) string {
		t.Helper()
		out, err := store.Run(e.ctx, args...)
		e.must(err)
		return out
	}
	run("create", "vm1", "--size", "64M")
	daemon, err := harness.StartLibvirtd(e.ctx, e.dir)
	e.must(err)
	t.Cleanup(daemon.Kill)
	socket := filepath.Join(e.dir, "vm1.sock")
	b, err := harness.StartBackend(e.ctx, store.Cmd("serve", "vm1", "--socket-path", socket,
		"--libvirt", daemon.URI, "--domain", "vm1"), socket)
	e.must(err)
	s := e.watch(b)
	file, console, agent := e.domain(run("xml", "vm1", "--socket-path", socket, "--domain",
		"--type", "qemu", "--memory", "256M", "--vcpus", "2"))
	virsh := func(args ...string) string {
		t.Helper()
		out, err := daemon.Virsh(e.ctx, args...)
		e.must(err)
		return out
	}
	virsh("create", file)
	if _, err := agent.Ready(e.ctx); err != nil {
		t.Fatalf("%v\n--- console\n%s", err, console.Tail())
	}
	filled := make(chan error, 1)
	go func() {
		_, err := agent.Run(e.ctx, fillDisk)
		filled <- err
	}()
	e.until("the domain is paused", func() bool { return virsh("domstate", "vm1") == "paused" })
	select {
	case err := <-filled:
		t.Fatalf("the guest finished before there was space: %v", err)
	default:
	}
	e.must(os.Remove(ballast))
	e.until("the domain runs again", func() bool { return virsh("domstate", "vm1") == "running" })
	if err := <-filled; err != nil {
		t.Fatalf("%v\n--- console\n%s", err, console.Tail())
	}
	virsh("destroy", "vm1")
	e.waitedForSpace(store, s)
}
