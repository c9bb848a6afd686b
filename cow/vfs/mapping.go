package vfs

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotMappable is returned by File.Map: read the file by other means.
var ErrNotMappable = errors.New("cannot be mapped")

// Mapping is a file's content in memory with a guess, one bit a page, of what
// of it is resident. Copying from there costs no system call, which is half of
// what a read of a page costs. All methods but Close may be called by many
// goroutines at once.
//
// A page that has come out of the page cache once (Seen) is believed to stay
// there. When that is wrong the copy waits for the device in a page fault, and
// the thread cannot even be stopped for the garbage collector meanwhile. So
// wrong guesses must be few: pages in use are kept by the kernel, which sees
// accesses through the mapping, and after one wrong guess everything is
// forgotten and the mapping stays off for a while (see mapping_backoff.go).
//
// The kernel is given no advice about the mapping. MADV_RANDOM would keep a
// fault from reading ahead, but it also tells reclaim to ignore that pages are
// used through this mapping (vma_has_recency): with a stream of other reads
// beside it a hot file loses one page in twenty between two uses with
// MADV_RANDOM and none without. The first touch of a page maps its resident
// neighbours, too, advice or not.
//
// A file that is cut short faults beyond its new last page, which switches the
// mapping off for good; within the last page zeros are read.
type Mapping struct {
	// What every copy needs is in one line of the cache: a disk has many of these.
	disabledUntil atomic.Int64 // ns; 0: on, forGood: off for ever, else: off until then
	faultTicks    int64        // ticks; see CopyWatched
	mem           []byte       // the file
	pages         residency

	base     time.Time     // monotonic; the zero of all times here
	slowTime time.Duration // a small copy that takes longer is suspicious

	backoff
}

const (
	// Each copy is timed, with the processor's counter: two looks at the clock cost
	// a tenth of a copy, for they wait until the copy before is through.
	slowCopy = 30 * time.Microsecond
	slowByte = time.Nanosecond // what each byte may take on top of that
	// No page comes from a device within this time: it takes a command, an
	// interrupt and two switches of context.
	minFaultTime = 5 * time.Microsecond

	forever = math.MaxInt64
)

// Map implements File.
func (f *osFile) Map(length int64) (*Mapping, error) {
	if length <= 0 || length > math.MaxInt {
		return nil, f.fail("map", fmt.Errorf("%d bytes: %w", length, ErrNotMappable))
	}
	mem, err := unix.Mmap(f.fd, 0, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, f.fail("map", fmt.Errorf("%w: %w", ErrNotMappable, err))
	}
	m := &Mapping{mem: mem, base: time.Now(), faultTicks: toTicks(minFaultTime), slowTime: slowCopy}
	if err := m.pages.init(length); err != nil {
		_ = unix.Munmap(mem)
		return nil, f.fail("map", fmt.Errorf("%w: %w", ErrNotMappable, err))
	}
	m.backoff.init()
	return m, nil
}

// Copy copies len(p) bytes from off to p if every page of them is believed
// resident, and reports whether it did. If not, p's content is undefined and
// the bytes have to be read by other means. A fault on p goes on to the caller.
func (m *Mapping) Copy(p []byte, off int64) (ok bool) {
	ok, _ = m.CopyTimed(p, off)
	return ok
}

// CopyTimed is Copy for who has to know whether the bytes have come from the
// device just now: late is true then, and now and then without.
func (m *Mapping) CopyTimed(p []byte, off int64) (ok, maybeFaulted bool) {
	if m.disabledUntil.Load() != 0 && !m.tryEnable() {
		return false, false
	}
	if off < 0 || off > int64(len(m.mem)) || int64(len(p)) > int64(len(m.mem))-off {
		return false, false
	}
	if !m.pages.has(off, int64(len(p))) {
		return false, false
	}
	start := ticks()
	ok = m.copyOut(p, off)
	took := int64(ticks() - start)
	allowance := time.Duration(len(p)) * slowByte
	if took <= m.faultTicks+toTicks(allowance) {
		return ok, false
	}
	if fromTicks(took) > m.slowTime+allowance {
		m.afterSlowCopy()
	}
	return ok, true
}

// copyOut is Copy's copying. A file that has been cut short raises SIGBUS, which
// is made a panic for as long as this lasts.
func (m *Mapping) copyOut(p []byte, off int64) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			m.fault(r)
		}
	}()
	copy(p, m.mem[off:])
	return true
}

// fault ends the use of the mapping if the panic r is a fault on it, and lets
// it go on if not: p, memory of a guest maybe, is its owner's business.
func (m *Mapping) fault(r any) {
	if f, is := r.(interface{ Addr() uintptr }); !is || !contains(m.mem, f.Addr()) {
		panic(r)
	}
	m.disabledUntil.Store(forever)
}

// MarkResident says that the n bytes from off have just come out of the page cache.
// What is seen while the mapping is off may be gone when it is on again, so
// that is not noted.
func (m *Mapping) MarkResident(off, n int64) {
	if m.disabledUntil.Load() != 0 || off < 0 || n <= 0 || off >= int64(len(m.mem)) {
		return
	}
	m.pages.set(off, min(n, int64(len(m.mem))-off))
}

// MarkResidentInside is Seen for those pages that lie wholly within the n bytes.
func (m *Mapping) MarkResidentInside(off, n int64) {
	const page = 1 << pageShift
	first, end := (off+page-1)&^(page-1), (off+n)&^(page-1)
	m.MarkResident(first, end-first)
}

// Reset forgets what has been seen.
func (m *Mapping) Reset() { m.pages.clear() }

// Close unmaps the file. Nothing may be called during it or after it.
func (m *Mapping) Close() error {
	m.disabledUntil.Store(forever)
	m.pages.free()
	mem := m.mem
	m.mem = nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}
