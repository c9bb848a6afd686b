//go:build integration

package outage

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/integration/outage/device"
	"cowblk/internal/test"
)

// victims returns the files whose write-back or read is to fail: one set for each kind of file that
// the server has mapped or open.
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

// writeBackFails makes the write-back of files fail, evicts their pages, and repairs the device.
// The errors are not visible here.
func (m *machine) writeBackFails(files []string) {
	m.Helper()
	failing := wholeDevice // the file system does not report where new pages go
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

// writeAndFlush makes the guests write and flush; requests may fail. It returns what may have
// happened to unflushed content.
func (m *machine) writeAndFlush() event {
	m.Helper()
	e := kernelSurvived
	for i := range int64(3) {
		for _, d := range m.disks {
			_ = m.tryWrite(d, 500*i+20000, 3)
			if err := d.flush(); err != nil {
				if !isDeviceError(err) {
					m.Fatalf("%v\n%s", err, m.server.Output())
				}
				e = deviceFailed
			}
		}
	}
	return e
}

// serveUnlessBroken calls serve after an error of the device. An attempt may meet that error in the
// lock file of a disk, so there is one more attempt than there are disks. If one of the file
// system's own blocks failed, the file system may have given up, as btrfs does, and has to be
// mounted again.
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
	if m.checkWritable() == nil {
		m.Fatal("no disk is served, although the file system is writable")
	}
	return false
}

// checkWritable returns an error if the file system refuses writes, as it may after an error.
func (m *machine) checkWritable() error {
	err := os.WriteFile(filepath.Join(m.mnt, "alive"), ballast, 0o600)
	if err == nil {
		err = m.syncfs()
	}
	return err
}

// exitRefused is the exit code of a server that refuses a disk.
const exitRefused = 5

// serveRefused expects that the disks are refused, because nobody can tell a hole from a discarded
// block any more. It then serves them without their unflushed content. As in serveUnlessBroken,
// other errors may come first, and the file system may have given up.
func (m *machine) serveRefused() {
	m.Helper()
	refused := false
	for try := 0; try <= len(m.disks) && !refused; try++ {
		m.launch(nil)
		err := m.connect(waitLimit)
		refused = errors.Is(err, errEnded) && m.server.ExitCode() == exitRefused
		m.Logf("try %d: refused %v: %v", try, refused, err)
		m.kill() // also disconnects the guests
	}
	if refused {
		m.launch([]string{"--drop-unflushed"})
		if m.connect(waitLimit) == nil {
			m.verifyAs("served", deviceFailed)
			m.writeAndFlush()
			return
		}
	}
	if m.checkWritable() == nil {
		m.Errorf("refused %v; expected that the disks are refused, and served with --drop-unflushed", refused)
	}
}

// The write-back of pages fails once, the pages are evicted, and the device works again. A later
// flush must not lose flushed content, whether it succeeds or fails.
func TestWriteBackFailsThenPagesAreEvicted(t *testing.T) {
	for _, kind := range victimKinds {
		t.Run(kind, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.serve()
				m.scatter(1)
				// data is dirty before a flush; the other kinds are dirty after one
				if kind != "data" {
					for _, d := range m.disks {
						m.must(d.flush())
					}
				}
				m.writeBackFails(m.victims()[kind])
				m.evict()
				e := m.writeAndFlush()
				// Unflushed data is lost with its pages, and the server cannot know that.
				if kind != "data" {
					m.verifyAs("while served", e)
				}
				m.kill()
				if m.serveUnlessBroken() {
					m.verifyAs("after a kill", deviceFailed)
					m.stop()
				}
				m.umountAndMount()
				m.serve()
				m.verifyAs("mounted again", remounted)
			})
		})
	}
}

// The write-back of a disk's data fails after its server was killed, so no process receives the
// error. Unflushed content is served as it was written or not at all. A hole must not replace the
// base's content or flushed content.
func TestDataWriteBackFailsAfterKill(t *testing.T) {
	for _, c := range []struct {
		name      string
		meanwhile func(m *machine)
		refused   bool
	}{
		{"pages are cached", func(*machine) {}, false},
		{"pages are evicted", (*machine).dropCaches, false},
		// The inode is clean after the sync. Its eviction discards the recorded error.
		{"inode is evicted", func(m *machine) { unix.Sync(); m.dropCaches() }, false},
		{"inode is evicted after another process received the error", func(m *machine) {
			test.ErrorIs(m, m.syncfs(), unix.EIO, "syncfs after a write-back")
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
					m.verifyAs("served", deviceFailed)
					m.writeAndFlush()
				}
				m.must(m.dev.Cut(0))
				m.crash()
			})
		})
	}
}

// Reads fail after all pages were evicted. Guest requests may fail. The process continues, and when
// the device works again nothing flushed is lost.
func TestReadsFailAfterEviction(t *testing.T) {
	for _, kind := range victimKinds {
		t.Run(kind, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.serve()
				m.scatter(1)
				m.must(m.syncfs())
				m.evict()
				m.must(m.dev.Fail(device.Faults{Reads: m.places(m.victims()[kind]...)}))
				e := m.writeAndFlush()
				if !m.server.Running() {
					m.Fatalf("the server ended:\n%s", m.server.Output())
				}
				m.must(m.dev.Fail(device.Faults{}))
				if m.fs.ranges {
					m.verifyAs("while served", e)
					m.kill()
					m.serve()
					m.verifyAs("after a kill", e)
				}
				// If all reads failed, the file system itself may have given up.
				m.crash()
			})
		})
	}
}
