package device

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit, in bytes, that a power cut keeps or loses as a whole.
const SectorSize = 512

const (
	pageSize       = 4096
	sectorsPerPage = pageSize / SectorSize
)

// Range is a part of the device, in bytes.
type Range struct{ Off, Len int64 }

func (r Range) overlaps(off, n int64) bool { return off < r.Off+r.Len && r.Off < off+n }

// Faults selects the requests that fail with EIO. Zero value: none.
type Faults struct {
	Reads, Writes []Range // requests that touch one of these fail
	Syncs         bool
}

// Counters counts requests since the device was made.
type Counters struct {
	Reads, Writes, Syncs int64
	Failed               int64 // of all requests, for any reason
	Volatile             int64 // sectors that a power cut would lose now
}

// page holds the sectors of a page that were written since the last sync.
type page struct {
	data  [pageSize]byte
	valid uint8 // bit i: sector i was written
}

// Disk is the content of a device with a volatile write cache. Reads return the newest content. A
// Disk is safe for concurrent use.
type Disk struct {
	mu       sync.Mutex
	thawed   sync.Cond // signals that frozen became false
	durable  []byte    // anonymous mapping: untouched pages cost nothing
	volatile map[int64]*page
	faults   Faults
	dead     bool // the power is off
	frozen   bool
	counters Counters

	cutAfter int64 // writes and syncs until the power is cut; 0: never
	keep     float64
	rng      *rand.Rand
}

// NewDisk makes a disk of size bytes, a multiple of 4096, all zeros.
func NewDisk(size int64) (*Disk, error) {
	if size <= 0 || size%pageSize != 0 {
		return nil, fmt.Errorf("disk of %d bytes, expected a multiple of %d", size, pageSize)
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("disk of %d bytes: mmap: %w", size, err)
	}
	d := &Disk{durable: b, volatile: map[int64]*page{}, rng: rand.New(rand.NewPCG(1, 1))}
	d.thawed.L = &d.mu
	return d, nil
}

// Close frees the content.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.durable
	d.durable = nil
	return unix.Munmap(b)
}

// Size returns the size in bytes.
func (d *Disk) Size() int64 { return int64(len(d.durable)) }

// enter waits while the device is frozen, counts a request, and returns an error without power.
func (d *Disk) enter(count *int64) error {
	for d.frozen {
		d.thawed.Wait()
	}
	*count++
	if d.dead {
		d.counters.Failed++
		return syscall.EIO
	}
	return nil
}

func touches(ranges []Range, off, n int64) bool {
	for _, r := range ranges {
		if r.overlaps(off, n) {
			return true
		}
	}
	return false
}

var errOutside = errors.New("request outside the device")

func (d *Disk) inside(p []byte, off int64) error {
	if off < 0 || off > d.Size() || int64(len(p)) > d.Size()-off || off%SectorSize != 0 ||
		len(p)%SectorSize != 0 {
		return fmt.Errorf("%d bytes at %d of %d: %w", len(p), off, d.Size(), errOutside)
	}
	return nil
}

// ReadAt reads whole sectors. It returns EIO for a fault or without power.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inside(p, off); err != nil {
		return 0, err
	}
	// Faults may change during a freeze: look them up after it.
	if err := d.enter(&d.counters.Reads); err != nil {
		return 0, err
	}
	if touches(d.faults.Reads, off, int64(len(p))) {
		d.counters.Failed++
		return 0, syscall.EIO
	}
	copy(p, d.durable[off:])
	for at := int64(0); at < int64(len(p)); at += SectorSize {
		if pg, sector := d.find(off + at); pg != nil && pg.valid&(1<<sector) != 0 {
			copy(p[at:at+SectorSize], pg.data[sector*SectorSize:])
		}
	}
	return len(p), nil
}

// find returns the page of the volatile cache that holds the sector at off, or nil.
func (d *Disk) find(off int64) (pg *page, sector int64) {
	return d.volatile[off/pageSize], off / SectorSize % sectorsPerPage
}

// WriteAt writes whole sectors into the volatile cache. It returns EIO as ReadAt does.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.inside(p, off); err != nil {
		return 0, err
	}
	if err := d.enter(&d.counters.Writes); err != nil {
		return 0, err
	}
	if touches(d.faults.Writes, off, int64(len(p))) {
		d.counters.Failed++
		return 0, syscall.EIO
	}
	for at := int64(0); at < int64(len(p)); at += SectorSize {
		pg, sector := d.find(off + at)
		if pg == nil {
			pg = &page{}
			d.volatile[(off+at)/pageSize] = pg
		}
		pg.valid |= 1 << sector
		copy(pg.data[sector*SectorSize:(sector+1)*SectorSize], p[at:])
	}
	return len(p), d.countdown()
}

// Sync makes all earlier writes durable. It returns EIO as ReadAt does and then leaves the cache
// unchanged.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(&d.counters.Syncs); err != nil {
		return err
	}
	if d.faults.Syncs {
		d.counters.Failed++
		return syscall.EIO
	}
	// The power may fail at the beginning of a sync, which then does nothing.
	if err := d.countdown(); err != nil {
		return err
	}
	d.drain(1)
	return nil
}

// countdown cuts the power at the last request of CutAfter.
func (d *Disk) countdown() error {
	if d.cutAfter == 0 {
		return nil
	}
	if d.cutAfter--; d.cutAfter > 0 {
		return nil
	}
	d.cut(d.keep)
	d.counters.Failed++
	return syscall.EIO
}

// drain makes each sector of the cache durable with probability keep.
func (d *Disk) drain(keep float64) {
	for n, pg := range d.volatile {
		for s := range int64(sectorsPerPage) {
			if pg.valid&(1<<s) == 0 || keep < 1 && d.rng.Float64() >= keep {
				continue
			}
			copy(d.durable[n*pageSize+s*SectorSize:][:SectorSize], pg.data[s*SectorSize:])
			pg.valid &^= 1 << s
		}
		if pg.valid == 0 {
			delete(d.volatile, n)
		}
	}
}

func (d *Disk) cut(keep float64) {
	d.drain(keep)
	clear(d.volatile)
	d.dead, d.cutAfter = true, 0
}
