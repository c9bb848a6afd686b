package pagecache

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotMappable is returned by Map, wrapped with the reason: read the file by other means.
var ErrNotMappable = errors.New("cannot be mapped")

// Mapping is a file's content in memory with one bit a page that marks it as resident, as far as is
// known. A copy from there needs no system call, which is half the cost of reading a page. All
// methods but Close may be called concurrently. Offsets and lengths are in bytes.
//
// A page that was read from the page cache or written to it (MarkResident) is assumed to stay
// there. If it was evicted, the copy waits for the device in a page fault, and meanwhile the thread
// cannot even be stopped for the garbage collector. So wrong marks must be rare. The kernel keeps
// pages in use, and it sees accesses through the mapping. After one wrong mark all marks are
// cleared and the mapping is disabled for a while (see backoff.go).
//
// The kernel gets no advice about the mapping. MADV_RANDOM would keep a fault from reading ahead,
// but also tells reclaim to ignore that pages are used through this mapping (vma_has_recency): with
// a stream of other reads a hot file loses one page in twenty between two uses with MADV_RANDOM,
// and none without. The first access to a page maps its resident neighbours too, with or without
// advice.
//
// An access beyond the new last page of a truncated file faults, which disables the mapping for
// ever; within the last page zeros are read.
type Mapping struct {
	// The fields of every copy are in one cache line: a disk has many mappings.
	disabledUntil atomic.Int64 // ns; 0: enabled; forever: disabled for good
	faultTicks    int64        // a longer copy may have waited for the device
	mem           []byte       // the file
	writes        *writes      // in flight; nil: the file does not change
	pages         residency

	base     time.Time     // monotonic; the zero of all times here
	slowTime time.Duration // a small copy that takes longer is suspicious

	// readsFillHoles: a page fault in a hole takes space of the file system (tmpfs), so that a read
	// of a hole must not mark it.
	readsFillHoles bool

	memory memory
	looks  looks
	backoff
}

const (
	slowCopy = 30 * time.Microsecond
	slowByte = time.Nanosecond // allowed in addition per byte
	// No page comes from a device within this time: it takes a command, an interrupt and two
	// context switches.
	minFaultTime = 5 * time.Microsecond

	forever = math.MaxInt64
)

// Map maps the first length bytes (> 0) of the open file fd for reading; the file may be shorter.
// The Mapping does not need fd afterwards. Errors wrap ErrNotMappable.
//
// written: this process writes to the file meanwhile, with BeginWrite and EndWrite around each
// write, by no other way and through the page cache. Then the file system must be one whose
// mappings show each write once it has returned.
func Map(fd int, length int64, written bool) (*Mapping, error) {
	if length <= 0 || length > math.MaxInt {
		return nil, fmt.Errorf("%d bytes: %w", length, ErrNotMappable)
	}
	kind, err := kindOf(fd)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMappable, err)
	}
	if written && !kind.coherent {
		return nil, fmt.Errorf("a file that is written on this file system: %w", ErrNotMappable)
	}
	mem, err := unix.Mmap(fd, 0, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMappable, err)
	}
	m := &Mapping{
		mem: mem, base: time.Now(), faultTicks: toTicks(minFaultTime), slowTime: slowCopy,
		readsFillHoles: written && kind.readsFillHoles,
		backoff:        backoff{faults: majorFaults, lastFaults: majorFaults()},
	}
	if written {
		m.writes = new(writes)
	}
	if err := m.pages.init(length); err != nil {
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("%w: %w", ErrNotMappable, err)
	}
	m.memory.init(length)
	m.looks.init(length, kind.showsResident)
	return m, nil
}

// Copies is a series of copies from mappings, one after the other. Its zero value is not ready: see
// BeginCopies.
type Copies struct {
	m        *Mapping // of the copy in progress; nil: none
	length   int64    // bytes of that copy
	version  uint64   // of its writes
	lastTick uint64
}

// BeginCopies begins a series.
func BeginCopies() Copies { return Copies{lastTick: ticks()} }

// Begin begins a copy of n bytes at off. It returns them, or nil if not all of their pages are
// marked resident, or a write to them is in flight. The caller copies them at once, then calls End.
// An access may raise SIGBUS: see Fault.
func (c *Copies) Begin(m *Mapping, off, n int64) []byte {
	if m.disabledUntil.Load() != 0 && !m.tryEnable() {
		return nil
	}
	if off < 0 || off > int64(len(m.mem)) || n > int64(len(m.mem))-off || !m.pages.has(off, n) {
		return nil
	}
	if m.writes != nil {
		version, quiet := m.writes.version(off, n)
		if !quiet {
			return nil
		}
		c.version = version
	}
	if !m.memory.used.Load() {
		m.memory.used.Store(true)
	}
	c.m, c.length = m, n
	return m.mem[off : off+n : off+n]
}

// End ends the copy of the bytes that Begin has returned from off. ok: what was copied is the
// file's content at one time between Begin and End, sector by sector. maybeFaulted: the copy was
// slow enough to have waited for the device; false positives occur.
func (c *Copies) End(off int64) (ok, maybeFaulted bool) {
	m := c.m
	c.m = nil
	now := ticks()
	took := int64(now - c.lastTick)
	c.lastTick = now
	ok = true
	if m.writes != nil {
		version, quiet := m.writes.version(off, c.length)
		ok = quiet && version == c.version
	}
	allowance := time.Duration(c.length) * slowByte
	if took <= m.faultTicks+toTicks(allowance) {
		return ok, false
	}
	if fromTicks(took) > m.slowTime+allowance {
		m.afterSlowCopy()
	}
	return ok, true
}

// Fault handles the panic p of a copy for which the goroutine has called debug.SetPanicOnFault. If
// it is a fault on the mapping, which is disabled for ever then, Fault returns, and the copy has
// failed. Otherwise it panics again: the other memory, a guest's perhaps, is the caller's.
func (c *Copies) Fault(p any) {
	f, is := p.(interface{ Addr() uintptr })
	if !is || c.m == nil || !contains(c.m.mem, f.Addr()) {
		panic(p)
	}
	c.m.disabledUntil.Store(forever)
	c.m = nil
}

// Reset clears all marks.
func (m *Mapping) Reset() { m.clear() }

// Close unmaps the file. No method may be called during it or after it.
func (m *Mapping) Close() error {
	m.disabledUntil.Store(forever)
	m.looks.ended.Wait()
	m.memory.stopTimer()
	m.pages.free()
	mem := m.mem
	m.mem = nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// tickRate is the number of ticks in 1,024 ns: the median of three short measurements, one of which
// may have been interrupted.
//
// Copies are timed with a counter of the CPU that grows evenly (RDTSC, CNTVCT). Reading it does not
// wait for earlier instructions, as reading the clock does; a wait in the kernel for a page still
// shows. With time.Since instead, 4 KiB reads of a cow.Channel at random places of a hot file of 1
// GiB take 4 to 5 % more CPU time, and of 4 MiB, which the CPU's cache holds, 20 to 23 %. (Medians
// of 300 interleaved runs of 4,000 reads, Linux 6.18, virtual machine with two cores of an AMD EPYC
// that others kept busy.)
var tickRate = sync.OnceValue(func() int64 {
	var rates []int64
	for range 3 {
		from, start := ticks(), time.Now()
		for time.Since(start) < 200*time.Microsecond {
		}
		n := int64(ticks() - from)
		rates = append(rates, n*1024/int64(time.Since(start)))
	}
	slices.Sort(rates)
	return max(1, rates[1])
})

// toTicks converts a time of at most some hours to ticks.
func toTicks(d time.Duration) int64 { return int64(d) * tickRate() >> 10 }

// fromTicks converts ticks to a time.
func fromTicks(n int64) time.Duration {
	rate := tickRate()
	return time.Duration(n/rate<<10 + n%rate<<10/rate)
}
