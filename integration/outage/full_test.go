//go:build integration

package outage

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/vhost/vhosttest"
)

// refused tells whether the device completed a request with an error, as it does when
// there is no space and --on-enospc is error.
func refused(err error) bool {
	var e *vhosttest.StatusError
	return errors.As(err, &e) && e.Status == vhosttest.StatusIOErr
}

// tryWrite is write where an error of the device is allowed, and returned.
func (m *machine) tryWrite(d *disk, first, n int64) error {
	m.Helper()
	err := d.write(first, n)
	if err != nil && !refused(err) {
		m.Fatalf("%v\n%s", err, m.server.Output())
	}
	return err
}

// wideSize is the size of a disk whose map has many pages, in bytes.
const wideSize = 128 << 20

// mapPageSectors is how many sectors of a disk of 512-byte blocks a page of its map has.
const mapPageSectors = 4096 * 8

// trials on a nearly full file system.
const trials = wideSize/sectorSize/mapPageSectors - 1

// nearlyFull calls step again and again, with so many pages more to be had each time.
// Before each step, what the server has of its files is clean: where the file system
// copies on write the kernel has to find space for whatever changes.
func (m *machine) nearlyFull(pages int, step func(n int)) {
	m.Helper()
	if m.fs.kind == "xfs" { // it reserves blocks of its trees, too
		pages *= 3
	}
	for n := range trials {
		if m.fs.kind != "ext4" {
			m.free()
			m.share()
		}
		m.fill(n * pages)
		for _, f := range m.files() {
			if !isData(f) {
				m.writeBack(f)
			}
		}
		step(n)
	}
}

// firstWrites makes first writes on a file system that is nearly full: some must
// succeed and some fail.
func (m *machine) firstWrites() {
	m.Helper()
	failed, succeeded := 0, 0
	try := func(d *disk, first, count int64) {
		if m.tryWrite(d, first, count) == nil {
			succeeded++
		} else {
			failed++
		}
	}
	m.nearlyFull(1, func(n int) {
		for _, d := range m.disks {
			if d.size != wideSize {
				try(d, 61440+int64(n)*128, 1)
				continue
			}
			// A write in two pages of the map, of which the first has got its space already.
			page := int64(n+1) * mapPageSectors
			try(d, page-64, 1)
			try(d, page-8, 16)
		}
	})
	m.Logf("%d first writes failed for want of space, %d succeeded", failed, succeeded)
	if failed == 0 || succeeded == 0 {
		m.Error("the file system was never full, or always")
	}
}

// A guest makes first writes on a full file system, whatever pages of the store's
// files have to be copied for them. They fail, or they do not. The disk can be closed
// in order and opened again, and has everything that was completed.
func TestFirstWritesOnAFullFileSystem(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(m *machine)
	}{
		{"then stopped", func(m *machine) { m.free(); m.stop() }},
		{"then stopped while full", (*machine).stopWhileFull},
		{"then killed", func(m *machine) { m.kill() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(m *machine) {
				wide := m.newDisk("wide", "512", wideSize, true)
				m.disks = []*disk{wide, m.disks[0], m.disks[1], m.disks[2]}
				m.serve()
				m.scatter(1)
				m.firstWrites()
				c.end(m)
				m.serveWithSpace()
				m.verifyAs("served again", lived)
				m.free()
				for _, d := range m.disks {
					m.must(d.write(100, 200))
					m.must(d.flush())
				}
				m.restart()
				m.verifyAs("after an orderly restart", lived)
				m.must(m.cowblk("check"))
			})
		})
	}
}

// fullPause is how long a server may take on a full file system before space is made:
// it may wait for that.
const fullPause = 500 * time.Millisecond

// serveWithSpace starts the server. On a full file system it may refuse or wait, and
// must not when there is space.
func (m *machine) serveWithSpace() {
	m.Helper()
	m.launch(nil)
	err := m.connect(fullPause)
	if err == nil {
		return
	}
	m.Logf("with a full file system: %v\n%s", err, m.server.Output())
	m.free()
	err = m.connect(waitLimit)
	if errors.Is(err, errEnded) {
		m.launch(nil)
		err = m.connect(waitLimit)
	}
	if err != nil {
		m.Fatalf("with space: %v\n%s", err, m.server.Output())
	}
}

// stopWhileFull asks the server to end, and then makes space.
func (m *machine) stopWhileFull() {
	m.Helper()
	for _, d := range m.disks {
		d.hangUp()
	}
	m.must(m.server.Signal(unix.SIGTERM))
	select {
	case <-m.server.Done():
	case <-time.After(fullPause):
	}
	m.free()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if err := m.server.Wait(ctx); err != nil {
		m.Errorf("stopped while the file system was full: %v", err)
	}
	m.server.Kill()
	m.server = nil
}

// promotionRounds is how often all amounts of space are tried: which of a promotion's
// files gets the last page is not always the same.
const promotionRounds = 4

// A promotion on a nearly full file system fails as a whole, or the new head keeps what
// is written to it when the server is killed.
func TestPromotionOnANearlyFullFileSystem(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		failed, succeeded := 0, 0
		for round := range promotionRounds {
			m.nearlyFull(1+round, func(n int) {
				d := m.disks[(failed+succeeded)%len(m.disks)]
				if err := m.cowblk("promote", d.name, "--tag", tag(failed+succeeded)); err != nil {
					failed++
				} else {
					succeeded++
				}
				_ = m.tryWrite(d, 40000+int64(failed+succeeded)*128, 3)
			})
		}
		m.Logf("%d promotions failed, %d succeeded", failed, succeeded)
		if failed == 0 {
			m.Error("there was always space")
		}
		m.kill()
		m.serveWithSpace()
		m.verifyAs("after a kill", lived)
		m.free()
		m.restart()
		m.verifyAs("after an orderly restart", lived)
		m.must(m.cowblk("check"))
	})
}
