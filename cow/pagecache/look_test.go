package pagecache

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// One read that finds its page in memory marks the resident pages of its region, and no others.
func TestLookAround(t *testing.T) {
	const page, size = 4096, 2<<regionShift + 100
	want := content(size, 3)
	f := filled(t, want)
	m := mapped(t, f, size)
	m.faults = func() int64 { return m.lastFaults }
	p := make([]byte, page)
	marked := func(n int64) bool {
		return m.copies(p, n*page) && bytes.Equal(p, want[n*page:][:page])
	}

	// Pages 100 to 163 are not in memory: where the file system is in memory itself, all are.
	test.Must(t, unix.Fadvise(int(f.Fd()), 100*page, 64*page, unix.FADV_DONTNEED))
	resident := make([]byte, size/page+1)
	test.Must(t, mincore(m.mem, &resident[0]))
	m.MarkFound(7*page, page)
	m.looks.ended.Wait()
	for n := range int64(1 << (regionShift - pageShift)) {
		if got, want := marked(n), resident[n]&1 != 0; got != want {
			t.Fatalf("page %d: marked %t, resident %t", n, got, want)
		}
	}
	if marked(600) {
		t.Error("a page of another region is marked")
	}
	m.MarkFound(size-1, 1) // in the last, short region
	m.looks.ended.Wait()
	if !m.copies(p[:100], size-100) {
		t.Error("the last page is not marked")
	}
	m.MarkFound(size, 1)
	m.MarkFound(-1, 1)
}

// The regions are looked at again when their reads still find pages without marks.
func TestLookAgain(t *testing.T) {
	const page = 4096
	f := filled(t, content(64*page, 1))
	m := mapped(t, f, 64*page)
	m.faults = func() int64 { return m.lastFaults }
	for n := int64(1); n <= 16; n++ {
		m.pages.clear()
		m.MarkFound(0, page)
		m.looks.ended.Wait()
		if looked := m.copies(make([]byte, page), 9*page); looked != (n&(n-1) == 0) {
			t.Errorf("read %d: looked %t", n, looked)
		}
	}
	m.looks.allowed = false
	m.pages.clear()
	m.MarkFound(0, page)
	if m.copies(make([]byte, page), 9*page) {
		t.Error("looked although the kernel does not tell")
	}
}
