package vfs

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotMappable is returned by File.Map: read the file by other means.
var ErrNotMappable = errors.New("cannot be mapped")

// Mapping is a file's content in memory with a guess, one bit a page, of what
// of it is resident. All methods but Close may be called from many goroutines.
type Mapping struct {
	mem   []byte // the file
	pages residency

	base  time.Time     // monotonic; the zero of all times below
	until atomic.Int64  // ns; 0: on; otherwise off until then
	slow  time.Duration // a copy that takes longer is looked into

	mu     sync.Mutex // of what follows
	majflt int64      // of the process, when last asked
	since  int64      // ns: when it was last switched on
	off    int64      // ns: how long it was off before that
}

const (
	slowCopy   = 30 * time.Microsecond
	slowByte   = time.Nanosecond // per byte, on top of it
	offFirst   = int64(100 * time.Millisecond)
	offLongest = int64(10 * time.Second)
	forGood    = math.MaxInt64
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
	m := &Mapping{mem: mem, base: time.Now(), slow: slowCopy, majflt: majorFaults()}
	if err := m.pages.init(length); err != nil {
		_ = unix.Munmap(mem)
		return nil, f.fail("map", fmt.Errorf("%w: %w", ErrNotMappable, err))
	}
	return m, nil
}

// Copy copies len(p) bytes from off to p if every page of them is believed
// resident, and reports whether it did. If not, p's content is undefined and
// the bytes have to be read by other means.
func (m *Mapping) Copy(p []byte, off int64) (ok bool) {
	if m.until.Load() != 0 && !m.on() {
		return false
	}
	if off < 0 || off > int64(len(m.mem)) || int64(len(p)) > int64(len(m.mem))-off {
		return false
	}
	if !m.pages.has(off, int64(len(p))) {
		return false
	}
	start := time.Since(m.base)
	if !m.copy(p, off) {
		return false
	}
	if took := time.Since(m.base) - start; took > m.slow+time.Duration(len(p))*slowByte {
		m.wasSlow()
	}
	return true
}

func (m *Mapping) copy(p []byte, off int64) (ok bool) {
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

// fault ends the use of the mapping if the panic r is a fault on it, and goes on
// with the panic if not.
func (m *Mapping) fault(r any) {
	if f, is := r.(interface{ Addr() uintptr }); !is || !contains(m.mem, f.Addr()) {
		panic(r)
	}
	m.until.Store(forGood)
}

// Seen says that the n bytes from off have just come out of the page cache.
func (m *Mapping) Seen(off, n int64) {
	if m.until.Load() != 0 || off < 0 || n <= 0 || off >= int64(len(m.mem)) {
		return
	}
	m.pages.set(off, min(n, int64(len(m.mem))-off))
}

// Close unmaps the file.
func (m *Mapping) Close() error {
	m.until.Store(forGood)
	m.pages.free()
	mem := m.mem
	m.mem = nil
	if mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// on reports whether a mapping that was switched off may be used again.
func (m *Mapping) on() bool {
	until := m.until.Load()
	now := int64(time.Since(m.base))
	if now < until {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until.CompareAndSwap(until, 0) && until != 0 {
		m.since = now
	}
	return m.until.Load() == 0
}

// wasSlow decides about a copy that took suspiciously long.
func (m *Mapping) wasSlow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := majorFaults()
	if n == m.majflt || m.until.Load() != 0 {
		return
	}
	m.majflt = n
	now := int64(time.Since(m.base))
	if m.off = m.off * 2; m.off == 0 || now-m.since > 5*m.off {
		m.off = offFirst
	}
	m.off = min(m.off, offLongest)
	if m.until.CompareAndSwap(0, now+m.off) {
		m.pages.clear()
	}
}

func majorFaults() int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Majflt
}
