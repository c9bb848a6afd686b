//go:build integration

package outage

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"cowblk/vhost/frontend"
)

// disk is one disk of a machine, with the guest that uses it.
type disk struct {
	m      *machine
	name   string
	number uint32
	size   int64 // bytes
	oracle *oracle
	guest  *frontend.Frontend // nil: disconnected
}

// newDisk creates a disk; blank disks have no base.
func (m *machine) newDisk(name, block string, size int64, blank bool) *disk {
	m.Helper()
	d := &disk{m: m, name: name, number: uint32(len(m.disks) + 1), size: size}
	d.oracle = newOracle(d.number, size/sectorSize)
	args := []string{"create", name, "--size", strconv.FormatInt(size, 10), "--block-size", block}
	if blank {
		for s := range d.oracle.stable {
			d.oracle.stable[s] = zeros
		}
	} else {
		args = append(args, "--base", m.base)
	}
	m.must(m.cowblk(args...))
	m.disks = append(m.disks, d)
	return d
}

// errEnded reports that the server ended before it listened.
var errEnded = errors.New("the server ended")

// errNotListening reports that the server did not listen in time.
var errNotListening = errors.New("the server does not listen")

// connect waits for the server's socket and connects the guest. It returns errEnded or
// errNotListening if the server does not listen.
func (d *disk) connect(limit time.Duration) error {
	socket := filepath.Join(d.m.store.Dir, "run", d.name+".sock")
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Millisecond) {
		f, err := frontend.Dial(socket, frontend.Options{Memory: 4 << 20, MaxTransfer: 1 << 20,
			Slots: 1, Timeout: waitLimit})
		if err == nil {
			d.guest = f
			return nil
		}
		switch {
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
			return err
		case !d.m.server.Running():
			return errEnded
		case time.Now().After(end):
			return errNotListening
		}
	}
}

func (d *disk) disconnect() {
	if d.guest != nil {
		_ = d.guest.Abort() // the server may be dead
		d.guest = nil
	}
}

// write writes n sectors with a new version and returns the guest's error.
func (d *disk) write(first, n int64) error {
	v := d.oracle.next
	d.oracle.next++
	p := make([]byte, n*sectorSize)
	for i := range n {
		put(p[i*sectorSize:], d.number, first+i, v)
	}
	_, err := d.guest.Driver(0).WriteAt(p, first*sectorSize)
	d.oracle.wrote(first, n, v, err == nil)
	return err
}

// writeZeroes writes zeros with a WRITE_ZEROES request.
func (d *disk) writeZeroes(first, n int64, unmap bool) error {
	err := d.guest.Driver(0).WriteZeroes(frontend.Range{Off: first * sectorSize,
		Len: n * sectorSize, Unmap: unmap})
	d.oracle.wrote(first, n, zeros, err == nil)
	return err
}

func (d *disk) flush() error {
	err := d.guest.Driver(0).Flush()
	if err == nil {
		d.oracle.flushed()
	}
	return err
}

func (d *disk) verify(e event) error {
	p := make([]byte, d.size)
	if _, err := d.guest.Driver(0).ReadAt(p, 0); err != nil {
		return err
	}
	return d.oracle.check(p, e)
}

// randomRange returns a random range of the disk, usually a small one. It is unaligned or aligned
// to one of several block sizes.
func randomRange(r *rand.Rand) (first, n int64) {
	const sectors = diskSize / sectorSize
	n = 1 + r.Int64N(16)
	switch r.IntN(4) {
	case 0:
		n = 8 * n
	case 1:
		n = 128
	}
	first = r.Int64N(sectors - n)
	if r.IntN(2) == 0 {
		first -= first % min(n, 128)
	}
	return first, n
}

// scatter writes to every disk: some blocks are flushed, some not, some both. If the file system
// supports shared blocks, those of flushed content are shared.
func (m *machine) scatter(salt int64) {
	m.Helper()
	for _, d := range m.disks {
		for i := range int64(24) {
			m.must(d.write((salt*977+i*2311)%60000, 1+i%24))
		}
		m.must(d.flush())
	}
	if m.fs.reflink {
		m.share()
	}
	for _, d := range m.disks {
		for i := range int64(24) {
			m.must(d.write((salt*977+i*2311+i%2*1300)%60000, 1+i%16))
		}
	}
}
