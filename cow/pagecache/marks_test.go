package pagecache

import (
	"bytes"
	"errors"
	"math"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// writtenFile returns a file and its mapping as of a file that the process writes to. Copies are
// never slow.
func writtenFile(t *testing.T, p []byte) (*os.File, *Mapping) {
	t.Helper()
	f := filled(t, p)
	m, err := Map(int(f.Fd()), int64(len(p)), true)
	test.Must(t, err)
	t.Cleanup(func() { m.Close() })
	m.faultTicks, m.slowTime = math.MaxInt64/2, time.Hour
	return f, m
}

// A write marks the pages that it covers as a whole, as far as it got; a hole has no marks.
func TestWritesMarkPages(t *testing.T) {
	const page = 4096
	f, m := writtenFile(t, content(8*page, 1))
	write := func(off, n, written int64) {
		m.BeginWrite(off, n)
		_, err := f.WriteAt(content(int(written), 2), off)
		test.Must(t, err)
		m.EndWrite(off, n, written)
	}
	write(100, 3*page, 3*page)  // pages 1 and 2
	write(4*page, 2*page, page) // page 4
	write(7*page, page, 0)
	p := make([]byte, page)
	for n, want := range []bool{false, true, true, false, true, false, false, false} {
		if m.copies(p, int64(n)*page) != want {
			t.Errorf("page %d: copied %t, expected %t", n, !want, want)
		}
	}
	m.Unmark(2*page-1, 2) // of pages 1 and 2
	m.Unmark(-1, 5)
	m.Unmark(1<<40, 5)
	for n, want := range []bool{false, false, false, false, true} {
		if m.copies(p, int64(n)*page) != want {
			t.Errorf("page %d after a hole was made: copied %t, expected %t", n, !want, want)
		}
	}
}

// No copy counts that overlaps a write, wherever it begins and ends.
func TestCopyBesideAWrite(t *testing.T) {
	const piece = 1 << pieceShift
	size := int64(70 * piece) // two pieces share a counter
	_, m := writtenFile(t, make([]byte, size))
	m.pages.set(0, size)
	for _, c := range []struct {
		off, n, writeOff, writeLen int64
		overlaps                   bool
	}{
		{0, 512, 0, 512, true}, {0, 512, piece, 512, false}, {0, 2 * piece, piece, 512, true},
		{piece - 512, 512, piece, 4096, false}, {piece - 512, 513, piece, 4096, true},
		{5 * piece, 4096, 0, size, true}, {0, size, 69 * piece, 512, true},
		{3 * piece, 512, 2 * piece, piece + 1, true}, {3 * piece, 0, 0, size, false},
	} {
		copied := func(between func()) bool {
			k := BeginCopies()
			mem := k.Begin(m, c.off, c.n)
			between()
			if mem == nil {
				return false
			}
			ok, _ := k.End(c.off)
			return ok
		}
		whole := func() {
			m.BeginWrite(c.writeOff, c.writeLen)
			m.EndWrite(c.writeOff, c.writeLen, 0)
		}
		if !copied(func() {}) {
			t.Errorf("%+v: not copied without a write", c)
		}
		if copied(whole) == c.overlaps {
			t.Errorf("%+v: a write during the copy", c)
		}
		m.BeginWrite(c.writeOff, c.writeLen)
		if copied(func() {}) == c.overlaps {
			t.Errorf("%+v: a copy during the write", c)
		}
		if copied(func() { m.EndWrite(c.writeOff, c.writeLen, 0) }) == c.overlaps {
			t.Errorf("%+v: a write that ends during the copy", c)
		}
		if !copied(func() {}) {
			t.Errorf("%+v: not copied after the write", c)
		}
	}
}

// Every copy that counts has whole sectors, while two goroutines write.
func TestCopiesBesideWritesHaveWholeSectors(t *testing.T) {
	const sector, length = 512, 16 << 10
	f, m := writtenFile(t, make([]byte, length))
	m.pages.set(0, length)
	var writers sync.WaitGroup
	end := make(chan struct{})
	for w := range 2 {
		writers.Go(func() {
			for n := byte(w); ; n += 2 {
				select {
				case <-end:
					return
				default:
				}
				m.BeginWrite(0, length)
				_, err := unix.Pwrite(int(f.Fd()), bytes.Repeat([]byte{n}, length), 0)
				m.EndWrite(0, length, 0)
				test.Check(t, err)
				runtime.Gosched() // lets copies begin
			}
		})
	}
	copied, p := 0, make([]byte, length)
	for range 50000 {
		if !m.copies(p, 0) {
			continue
		}
		copied++
		for s := 0; s < length; s += sector {
			if one := p[s : s+sector]; !bytes.Equal(one, bytes.Repeat(one[:1], sector)) {
				t.Fatalf("sector %d has bytes of two writes", s/sector)
			}
		}
	}
	close(end)
	writers.Wait()
	t.Logf("%d copies of 50,000 met no write", copied)
}

// A file that is written is not mapped where writes might pass by the mapping.
func TestMapOfAWrittenFileOnAnotherFileSystem(t *testing.T) {
	f, err := os.Open("/proc/self/mem")
	test.Must(t, err)
	defer f.Close()
	if m, err := Map(int(f.Fd()), 4096, true); !errors.Is(err, ErrNotMappable) {
		t.Errorf("got %v, %v, expected ErrNotMappable", m, err)
	}
}
