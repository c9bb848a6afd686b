//go:build integration

package outage

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// isDeviceError reports whether the device completed a request with an error, as it does if there
// is no space and --on-enospc is report.
func isDeviceError(err error) bool {
	var e *frontend.StatusError
	return errors.As(err, &e) && e.Status == frontend.StatusIOErr
}

// tryWrite calls write, and returns an error of the device instead of failing the test.
func (m *machine) tryWrite(d *disk, first, n int64) error {
	m.Helper()
	err := d.write(first, n)
	if err != nil && !isDeviceError(err) {
		m.Fatalf("%v\n%s", err, m.server.Output())
	}
	return err
}

// wideSize is the size, in bytes, of a disk whose map has many pages.
const wideSize = 128 << 20

// mapPageSectors is the number of sectors that one page of the map covers with 512-byte blocks.
const mapPageSectors = 4096 * 8

// trials is the number of attempts on a nearly full file system.
const trials = wideSize/sectorSize/mapPageSectors - 1

// nearlyFull calls step for n from 0 with n*pages free pages on the file system (three times as
// many on XFS). Before each step the server's files are clean: on a copy-on-write file system every
// change then needs new space.
func (m *machine) nearlyFull(pages int, step func(n int)) {
	m.Helper()
	if m.fs.kind == "xfs" { // XFS also reserves blocks for its trees
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

// firstWrites makes first writes on a file system that is nearly full. Some must succeed and some
// must fail.
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
			// A write that touches two pages of the map; the first already has its space.
			page := int64(n+1) * mapPageSectors
			try(d, page-64, 1)
			try(d, page-8, 16)
		}
	})
	m.Logf("%d first writes failed without space, %d succeeded", failed, succeeded)
	if failed == 0 || succeeded == 0 {
		m.Error("the file system was never full or always full")
	}
}

// A guest makes first writes on a full file system, whichever pages of the store's files have to be
// copied for them. Each succeeds or fails. The disk can be closed in order and opened again, and
// has every completed write.
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
				m.verifyAs("served again", kernelSurvived)
				m.free()
				for _, d := range m.disks {
					m.must(d.write(100, 200))
					m.must(d.flush())
				}
				m.restart()
				m.verifyAs("after an orderly restart", kernelSurvived)
				m.must(m.cowblk("check"))
			})
		})
	}
}

// fullPause is the time given to a server on a full file system, which may wait for space, before
// space is made.
const fullPause = 500 * time.Millisecond

// serveWithSpace starts the server. On a full file system the server may refuse or wait; with space
// it must start.
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

// stopWhileFull sends the server SIGTERM and then makes space.
func (m *machine) stopWhileFull() {
	m.Helper()
	for _, d := range m.disks {
		d.disconnect()
	}
	m.must(m.server.Signal(unix.SIGTERM))
	select {
	case <-m.server.Done():
	case <-time.After(fullPause):
	}
	m.free()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	test.Check(m, m.server.Wait(ctx), "stopped while the file system was full")
	m.server.Kill()
	m.server = nil
}

// promotionRounds is how often all amounts of space are tried: which of a promotion's files gets
// the last page varies.
const promotionRounds = 4

// A promotion on a nearly full file system either fails as a whole or succeeds, and the new head
// then keeps its writes when the server is killed.
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
			m.Error("no promotion failed: there was always space")
		}
		m.kill()
		m.serveWithSpace()
		m.verifyAs("after a kill", kernelSurvived)
		m.free()
		m.restart()
		m.verifyAs("after an orderly restart", kernelSurvived)
		m.must(m.cowblk("check"))
	})
}
