//go:build integration

package outage

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The process dies, nothing else: every completed write is there, whatever the host
// does until the next one runs, and wherever that runs.
func TestKilledProcessLosesNothing(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		for i, c := range []struct {
			name      string
			meanwhile func()
			wrapper   []string
		}{
			{name: "at once"},
			{name: "with caches dropped", meanwhile: m.dropCaches},
			{name: "with everything synced", meanwhile: func() { m.must(m.syncfs()); m.dropCaches() }},
			{name: "remounted ro, then rw", meanwhile: func() {
				for _, flags := range []uintptr{unix.MS_RDONLY, 0} {
					m.must(unix.Mount("", m.mnt, "", unix.MS_REMOUNT|flags, ""))
				}
			}},
			{name: "in another mount namespace", wrapper: otherNamespace},
			{name: "from one other mount namespace to the next", wrapper: otherNamespace},
			{name: "back in the first one"},
		} {
			m.scatter(int64(i))
			m.kill()
			if c.meanwhile != nil {
				c.meanwhile()
			}
			m.serve(c.wrapper...)
			m.verifyAs(c.name, lived)
		}
	})
}

// The same where the store's run directory is not on a tmpfs.
func TestKilledProcessWithoutTmpfs(t *testing.T) {
	onEach(t, func(m *machine) {
		run := m.store.Dir + "/run"
		m.must(os.Remove(run))
		m.must(os.Mkdir(run, 0o755))
		m.serve()
		for n := range int64(3) {
			m.scatter(n)
			m.kill()
			m.serve()
			m.verify(lived)
		}
	})
}

// A remount as read-only is refused while a disk is served, and changes nothing.
func TestRemountWhileServed(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		if err := unix.Mount("", m.mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err == nil {
			m.Fatal("the file system of a served disk became read-only")
		}
		m.scatter(2)
		m.verify(lived)
	})
}

// An orderly stop leaves nothing that an unmount could lose.
func TestUnmountedAfterOrderlyStop(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		for n := range int64(2) {
			m.scatter(n)
			m.stop()
			for _, d := range m.disks {
				d.oracle.flushed()
			}
			m.umountAndMount()
			m.serve()
			m.verify(lived)
		}
	})
}

// The file system of a killed server is unmounted in order and mounted again: what was
// not flushed is there or gone.
func TestUnmountedAfterKill(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		for n := range int64(2) {
			m.scatter(n)
			m.kill()
			m.umountAndMount()
			m.serve()
			m.verify(lost)
		}
	})
}
