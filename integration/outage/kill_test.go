//go:build integration

package outage

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Only the process dies: every completed write is there, whatever the host does before the next
// process runs, and in whichever mount namespace it runs.
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
			{name: "with everything synced",
				meanwhile: func() { m.must(m.syncfs()); m.dropCaches() }},
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
			m.verifyAs(c.name, kernelSurvived)
		}
	})
}

// The same with the store's run directory on another file system than tmpfs.
func TestKilledProcessWithoutTmpfs(t *testing.T) {
	onEach(t, func(m *machine) {
		m.runInStore()
		m.serve()
		for n := range int64(3) {
			m.scatter(n)
			m.kill()
			m.serve()
			m.verify(kernelSurvived)
		}
	})
}

// runInStore moves the run directory to the store's file system.
func (m *machine) runInStore() {
	m.Helper()
	run := filepath.Join(m.store.Dir, "run")
	m.must(os.Remove(run))
	m.must(os.Mkdir(run, 0o755))
	m.must(m.syncfs())
}

// The run directory has no space, later it has: a completed write survives a kill in both cases.
func TestKilledProcessWithFullRunDirectory(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		ballast := filepath.Join(m.run, "ballast")
		if err := os.WriteFile(ballast, make([]byte, runSize+4096), 0o600); !errors.Is(err,
			unix.ENOSPC) {
			m.Fatalf("filling the run directory: %v, expected ENOSPC", err)
		}
		succeeded := 0
		for _, d := range m.disks {
			// far apart, so that more and more pages of the map are touched
			for i := range int64(200) {
				if m.tryWrite(d, i*311, 1) == nil {
					succeeded++
				}
			}
		}
		m.Logf("%d of %d writes succeeded", succeeded, 200*len(m.disks))
		m.kill()
		m.must(os.Remove(ballast))
		m.serve()
		m.verifyAs("after a kill", kernelSurvived)
		for _, d := range m.disks {
			for i := range int64(200) {
				m.must(d.write(i*313, 1))
			}
			m.must(d.flush())
		}
		m.verifyAs("with space", kernelSurvived)
	})
}

// The content of the run directory is removed after a kill. Unflushed content is then there or
// lost, and served content stays after a flush. If it is lost the disk is refused until the
// operator accepts the loss.
func TestRunDirectoryClearedAfterKill(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		m.kill()
		entries, err := os.ReadDir(m.run)
		m.must(err)
		for _, e := range entries {
			m.must(os.RemoveAll(filepath.Join(m.run, e.Name())))
		}
		m.launch(nil)
		if err := m.connect(waitLimit); errors.Is(err, errEnded) {
			m.Logf("refused: %s", m.server.Output())
			m.kill() // also disconnects the guests
			m.launch([]string{"--drop-unflushed"})
			m.must(m.connect(waitLimit))
		} else {
			m.must(err)
		}
		m.verifyAs("served", deviceFailed)
		for _, d := range m.disks {
			m.must(d.write(7, 3))
			m.must(d.flush())
		}
		m.must(m.dev.Cut(0))
		m.crash()
	})
}

// A read-only remount is refused while a disk is served, and changes nothing.
func TestRemountWhileServed(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		if err := unix.Mount("", m.mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err == nil {
			m.Fatal("the file system of a served disk became read-only")
		}
		m.scatter(2)
		m.verify(kernelSurvived)
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
			m.verify(kernelSurvived)
		}
	})
}

// The file system of a killed server is unmounted in order and mounted again: unflushed content is
// there or lost.
func TestUnmountedAfterKill(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		for n := range int64(2) {
			m.scatter(n)
			m.kill()
			m.umountAndMount()
			m.serve()
			m.verify(remounted)
		}
	})
}
