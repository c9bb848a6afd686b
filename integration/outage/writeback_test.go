//go:build integration

package outage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/integration/outage/device"
)

// victims are the files whose write-back or read fails: each kind of file that the
// server has mapped or open, alone.
func (m *machine) victims() map[string][]string {
	m.Helper()
	v := map[string][]string{}
	var maps []mapping
	if m.server != nil {
		maps = m.mappings()
	}
	for _, p := range maps {
		if !isData(p.path) && !slices.Contains(v["mapped files"], p.path) {
			v["mapped files"] = append(v["mapped files"], p.path)
		}
	}
	for _, p := range m.files() {
		if isData(p) {
			v["data"] = append(v["data"], p)
		} else {
			v["all but data"] = append(v["all but data"], p)
		}
	}
	return v
}

var victimKinds = []string{"mapped files", "all but data", "data"}

// writeBackFails has the kernel write back files while the device fails there, and then
// evict them; the device works again. No error is seen here.
func (m *machine) writeBackFails(files []string) {
	m.Helper()
	failing := everywhere // where new pages go is not known
	if m.fs.ranges && !m.fs.cow && !slices.ContainsFunc(files, isData) {
		failing = m.places(files...)
	}
	before, err := m.dev.Counters()
	m.must(err)
	m.must(m.dev.Fail(device.Faults{Writes: failing}))
	for _, p := range files {
		m.writeBack(p)
	}
	m.must(m.dev.Fail(device.Faults{}))
	after, err := m.dev.Counters()
	m.must(err)
	m.Logf("%d files, %d requests of the device failed", len(files), after.Failed-before.Failed)
}

// goOn makes the guests write and flush; requests may fail. It returns what may have
// become of what is not flushed.
func (m *machine) goOn() event {
	m.Helper()
	e := lived
	for i := range int64(3) {
		for _, d := range m.disks {
			_ = m.tryWrite(d, 500*i+20000, 3)
			if err := d.flush(); err != nil {
				if !refused(err) {
					m.Fatalf("%v\n%s", err, m.server.Output())
				}
				e = doubtful
			}
		}
	}
	return e
}

// serveUnlessBroken is serve after an error of the device. A try may meet that error in
// the lock file of a disk; one more than there are disks is enough, unless the file system
// has given up, as btrfs does if one of its own blocks is among those that fail. It then
// has to be mounted again.
func (m *machine) serveUnlessBroken() bool {
	m.Helper()
	for try := 1; ; try++ {
		m.launch(nil)
		err := m.connect(waitLimit)
		if err == nil {
			return true
		}
		m.Logf("try %d: %v\n%s", try, err, m.server.Output())
		m.kill()
		if try > len(m.disks) {
			break
		}
	}
	if m.alive() == nil {
		m.Fatal("no disk is served, although the file system can be written")
	}
	return false
}

// alive writes something to the file system, which may have given up after an error.
func (m *machine) alive() error {
	err := os.WriteFile(filepath.Join(m.mnt, "alive"), ballast, 0o600)
	if err == nil {
		err = m.syncfs()
	}
	return err
}

// serveRefused wants the disks to be refused, for nobody can tell any more whether a hole
// is a discarded block, and serves them without what was not flushed. As for
// serveUnlessBroken, other errors may come first, and the file system may have given up.
func (m *machine) serveRefused() {
	m.Helper()
	refused := false
	for try := 0; try <= len(m.disks) && !refused; try++ {
		m.launch(nil)
		err := m.connect(waitLimit)
		refused = errors.Is(err, errEnded) && strings.Contains(m.server.Output(), "--drop-unflushed")
		m.Logf("try %d: refused %v: %v", try, refused, err)
		m.kill() // hangs up, too
	}
	if refused {
		m.launch([]string{"--drop-unflushed"})
		if m.connect(waitLimit) == nil {
			m.verifyAs("served", doubtful)
			m.goOn()
			return
		}
	}
	if m.alive() == nil {
		m.Errorf("refused %v; expected that the disks are refused, and served with --drop-unflushed", refused)
	}
}

// The write-back of pages fails once, they are evicted, and the device works again. A
// later flush must not take flushed content away, whether it succeeds or not.
func TestWriteBackFailsThenPagesAreEvicted(t *testing.T) {
	for _, kind := range victimKinds {
		t.Run(kind, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.serve()
				m.scatter(1)
				if kind != "data" { // data is dirty before a flush; of the others, it is what a flush leaves
					for _, d := range m.disks {
						m.must(d.flush())
					}
				}
				m.writeBackFails(m.victims()[kind])
				m.evict()
				e := m.goOn()
				// Data that was not flushed is gone with its pages, and the server cannot know.
				if kind != "data" {
					m.verifyAs("while served", e)
				}
				m.kill()
				if m.serveUnlessBroken() {
					m.verifyAs("after a kill", doubtful)
					m.stop()
				}
				m.umountAndMount()
				m.serve()
				m.verifyAs("mounted again", lost)
			})
		})
	}
}

// The write-back of a disk's data fails after its server was killed, with nobody there
// to be told. What was not flushed is served as it was written or not at all: never a
// hole, where the base's content or what was flushed has to be.
func TestDataWriteBackFailsAfterKill(t *testing.T) {
	for _, c := range []struct {
		name      string
		meanwhile func(m *machine)
		refused   bool
	}{
		{"pages are cached", func(*machine) {}, false},
		{"pages are evicted", (*machine).dropCaches, false},
		// The inode is clean then, and goes with what it knew of the error.
		{"inode is evicted", func(m *machine) { unix.Sync(); m.dropCaches() }, false},
		{"inode is evicted and another process was told", func(m *machine) {
			if err := m.syncfs(); !errors.Is(err, unix.EIO) {
				m.Errorf("syncfs after a write-back error: %v, expected EIO", err)
			}
			m.dropCaches()
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.serve()
				m.scatter(1)
				m.kill()
				m.writeBackFails(m.victims()["data"])
				c.meanwhile(m)
				if c.refused {
					m.serveRefused()
				} else if m.serveUnlessBroken() {
					m.verifyAs("served", doubtful)
					m.goOn()
				}
				m.must(m.dev.Cut(0))
				m.crash()
			})
		})
	}
}

// Reads fail after all pages were evicted. Requests of the guest may fail; the process
// goes on, and when the device works again nothing flushed is lost.
func TestReadsFailAfterEviction(t *testing.T) {
	for _, kind := range victimKinds {
		t.Run(kind, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.serve()
				m.scatter(1)
				m.must(m.syncfs())
				m.evict()
				m.must(m.dev.Fail(device.Faults{Reads: m.places(m.victims()[kind]...)}))
				e := m.goOn()
				if !m.server.Running() {
					m.Fatalf("the server has ended:\n%s", m.server.Output())
				}
				m.must(m.dev.Fail(device.Faults{}))
				if m.fs.ranges {
					m.verifyAs("while served", e)
					m.kill()
					m.serve()
					m.verifyAs("after a kill", e)
				}
				// Where all reads failed, the file system itself may have given up.
				m.crash()
			})
		})
	}
}
