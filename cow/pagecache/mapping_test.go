package pagecache

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

func content(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) ^ seed
	}
	return p
}

// filled returns a new file with this content.
func filled(t *testing.T, p []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	test.Must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.Write(p)
	test.Must(t, err)
	test.Must(t, f.Sync())
	return f
}

// mapped returns a mapping with which every copy counts as slow: only the fault count decides
// whether a mark was wrong.
func mapped(t *testing.T, f *os.File, length int64) *Mapping {
	t.Helper()
	m, err := Map(int(f.Fd()), length, false)
	test.Must(t, err)
	t.Cleanup(func() { m.Close() })
	m.faultTicks, m.slowTime = math.MinInt64/2, -time.Hour
	return m
}

// copies copies len(p) bytes from off as a Channel does.
func (m *Mapping) copies(p []byte, off int64) (ok bool) {
	c := BeginCopies()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			c.Fault(r)
		}
	}()
	mem := c.Begin(m, off, int64(len(p)))
	if mem == nil {
		return false
	}
	copy(p, mem)
	ok, _ = c.End(off)
	return ok
}

func TestCopyOnlyResidentPages(t *testing.T) {
	const size = 70*4096 + 100 // the last page is not whole, and two words of bits
	want := content(size, 1)
	m := mapped(t, filled(t, want), size)
	m.faults = func() int64 { return m.lastFaults }
	tests := []struct {
		off, n int64
		ok     bool // once pages 1, 2 and 60 to the end are marked
	}{
		{4096, 4096, true}, {4096, 8192, true}, {5000, 10, true}, {4095, 2, false},
		{12287, 2, false},
		{0, 4096, false}, {60 * 4096, 10*4096 + 100, true}, {59 * 4096, 2 * 4096, false},
		{63*4096 + 7, 4096, true}, {70 * 4096, 100, true}, {70 * 4096, 101, false},
		{size, 0, true}, {size, 1, false}, {size + 1, 0, false}, {-1, 1, false}, {4096, 0, true},
		{0, 1, false}, {3 * 4096, 1, false}, {4 * 4096, 1, false},
	}
	for _, tc := range tests {
		if tc.n > 0 && m.copies(make([]byte, tc.n), tc.off) {
			t.Errorf("%d bytes from %d were copied before anything had been seen", tc.n, tc.off)
		}
	}
	m.MarkResident(4096+5, 1)
	m.MarkResidentInside(4096+5, 2*4096) // and parts of pages 1 and 3
	m.MarkResident(60*4096, 1<<40)
	m.MarkResident(1<<40, 1)
	m.MarkResident(-5, 100)
	m.MarkResident(0, 0)
	for _, c := range [][2]int64{{1, 4095}, {0, 4095}, {3*4096 + 1, 4096}, {3 * 4096, 0},
		{4 * 4096, -4096}} {
		m.MarkResidentInside(c[0], c[1])
	}
	for _, tc := range tests {
		p := make([]byte, tc.n)
		ok := m.copies(p, tc.off)
		if ok != tc.ok || ok && !bytes.Equal(p, want[tc.off:][:tc.n]) {
			t.Errorf("%d bytes from %d: got %v, want %v and the file's content", tc.n, tc.off, ok,
				tc.ok)
		}
	}
}

// A truncated file disables the mapping for ever; a file that grows again, or was short from the
// start, is copied as far as it is marked.
func TestCopyOfATruncatedFile(t *testing.T) {
	f := filled(t, content(4096, 1))
	m := mapped(t, f, 1<<20)
	m.faults = func() int64 { return m.lastFaults }
	m.MarkResident(0, 4096)
	p := make([]byte, 4096)
	if !m.copies(p, 0) {
		t.Fatal("not copied")
	}
	_, err := f.WriteAt(content(8192, 2), 4096)
	test.Must(t, err)
	m.MarkResident(4096, 8192)
	if !m.copies(p, 8192) || !bytes.Equal(p, content(8192, 2)[4096:]) {
		t.Fatal("what the file has grown by is not copied")
	}
	test.Must(t, f.Truncate(4096))
	before := debug.SetPanicOnFault(false)
	if m.copies(p, 4096) {
		t.Fatal("bytes beyond the end of the file were copied")
	}
	if debug.SetPanicOnFault(before) {
		t.Error("faults of the caller are panics now")
	}
	m.base = m.base.Add(-24 * time.Hour)
	m.MarkResident(0, 4096)
	if m.copies(p, 0) {
		t.Error("the mapping is still in use")
	}
}

// A fault on the destination is the caller's: it gets the same panic, and the mapping stays
// enabled.
func TestCopyToMemoryThatIsGone(t *testing.T) {
	f := filled(t, content(8192, 1))
	m := mapped(t, f, 8192)
	m.faults = func() int64 { return m.lastFaults }
	m.MarkResident(0, 8192)
	g := filled(t, content(4096, 2))
	guest, err := unix.Mmap(int(g.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	test.Must(t, err)
	defer unix.Munmap(guest)
	test.Must(t, g.Truncate(0))
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			fault, is := recover().(interface{ Addr() uintptr })
			if !is || !contains(guest, fault.Addr()) {
				t.Errorf("the caller got %v, want a fault in its own memory", fault)
			}
		}()
		m.copies(guest, 0)
		t.Error("Copy returned")
	}()
	if p := make([]byte, 4096); !m.copies(p, 0) {
		t.Error("the mapping was switched off")
	}
}

func TestEvictionSwitchesOff(t *testing.T) {
	const size = 64 * 4096
	want := content(size, 1)
	f := filled(t, want)
	m := mapped(t, f, size)
	// A device may be so fast that the copy is not suspicious, and the kernel does not count every
	// read page as a fault: both are simulated.
	m.slowTime, m.faults = -time.Minute, func() int64 { return m.lastFaults + 1 }
	m.MarkResident(0, size)
	// Before a page is mapped: mapped pages are kept. It makes no difference if some stay.
	test.Must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	p := make([]byte, size)
	if !m.copies(p, 0) || !bytes.Equal(p, want) {
		t.Fatal("the copy that waited has not the file's content")
	}
	if m.copies(p, 0) {
		t.Fatal("the mapping is in use after a wrong guess")
	}
}

// The times for which wrong marks disable a mapping, with simulated time and faults.
func TestMappingBackoff(t *testing.T) {
	f := filled(t, content(8192, 1))
	m := mapped(t, f, 8192)
	faults := m.lastFaults
	m.faults = func() int64 { return faults }
	pass := func(d time.Duration) { m.base = m.base.Add(-d) }
	p := make([]byte, 4096)
	m.MarkResident(0, 8192)
	for range 3 {
		if !m.copies(p, 0) {
			t.Fatal("slow copies without a fault switched the mapping off")
		}
	}
	const slack = 20 * time.Second // more than this test's own time can be
	for i, off := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 100, 100} {
		off *= 100 * time.Millisecond
		faults++
		if !m.copies(p, 0) {
			t.Fatalf("round %d: off before a wrong guess", i)
		}
		if m.disabledFor != off {
			t.Fatalf("round %d: off for %v, want %v", i, m.disabledFor, off)
		}
		m.disabledUntil.Add(int64(slack))
		m.MarkResident(0, 4096)
		if m.copies(p, 0) {
			t.Fatalf("round %d: not off", i)
		}
		pass(off + slack)
		if m.copies(p, 0) {
			t.Fatalf("round %d: bits were left of before", i)
		}
		m.MarkResident(0, 4096)
	}
	pass(20 * time.Minute)
	faults++
	m.copies(p, 0)
	test.Equal(t, m.disabledFor, disableMin, "after a long time without a wrong guess: off for")
}

func TestMapRefuses(t *testing.T) {
	f := filled(t, content(100, 1))
	for _, n := range []int64{0, -1, 1 << 62} {
		if m, err := Map(int(f.Fd()), n, false); !errors.Is(err, ErrNotMappable) {
			t.Errorf("%d bytes: got %v, %v, want ErrNotMappable", n, m, err)
		}
	}
	w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	test.Must(t, err)
	defer w.Close()
	if m, err := Map(int(w.Fd()), 100, false); !errors.Is(err, ErrNotMappable) {
		t.Errorf("of a file open for writing only: got %v, %v, want ErrNotMappable", m, err)
	}
	m, err := Map(int(f.Fd()), 100, false)
	test.Must(t, err)
	test.Must(t, m.Close())
	test.Must(t, m.Close())
}

func TestCopyDoesNotAllocate(t *testing.T) {
	f := filled(t, content(8192, 1))
	m := mapped(t, f, 8192)
	m.slowTime = time.Hour
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		m.MarkResident(0, 4096)
		m.copies(p, 0)
		m.copies(p, 4096)
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

// Many goroutines copy, mark and hit wrong marks at once; copies are right.
func TestConcurrentCopies(t *testing.T) {
	const size = 256 * 4096
	want := content(size, 1)
	f := filled(t, want)
	m := mapped(t, f, size)
	var mu sync.Mutex
	faults := int64(0)
	m.faults = func() int64 { // one slow copy in many had a fault
		mu.Lock()
		defer mu.Unlock()
		if rand.IntN(500) == 0 {
			faults++
		}
		return faults
	}
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			p := make([]byte, 3*4096)
			for range 3000 {
				n := 1 + rng.IntN(len(p))
				off := rng.Int64N(size - int64(n))
				if !m.copies(p[:n], off) {
					if _, err := f.ReadAt(p[:n], off); err != nil {
						t.Error(err)
						return
					}
					m.MarkResident(off, int64(n))
				}
				if !bytes.Equal(p[:n], want[off:][:n]) {
					t.Errorf("%d bytes from %d are not the file's", n, off)
					return
				}
				if rng.IntN(1000) == 0 { // sooner on again
					if u := m.disabledUntil.Load(); u != 0 {
						m.disabledUntil.CompareAndSwap(u, 1)
					}
				}
			}
		})
	}
	wg.Wait()
}
