package pagecache

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// pageTables returns the page tables of this process in bytes.
func pageTables(t *testing.T) (n int64) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	test.Must(t, err)
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmPTE: %d kB", &n); err == nil {
			return n << 10
		}
	}
	t.Fatal("/proc/self/status has no VmPTE")
	return 0
}

// A mapping that is not used gives its marks and page tables back, and works as before.
func TestIdleMappingNeedsNoMemory(t *testing.T) {
	const size = 64 << 20
	f := filled(t, nil)
	page := content(4096, 1)
	copy(page[4093:], "end")
	for off := int64(0); off < size; off += 4096 { // small folios: no huge page maps them
		_, err := f.WriteAt(page, off)
		test.Must(t, err)
	}
	m := mapped(t, f, size)
	m.faults = func() int64 { return m.lastFaults }
	m.MarkResident(0, size)
	before := pageTables(t)
	test.Must(t, unix.Madvise(m.mem, unix.MADV_POPULATE_READ))
	const tables, marks = size >> 9, 4096
	if grown := pageTables(t) - before; grown < tables {
		t.Fatalf("page tables of %d bytes have grown by %d", size, grown)
	}
	test.Equal(t, m.Memory(), int64(tables+marks), "memory of marks and page tables")
	p := make([]byte, 3)
	if !m.copies(p, size-3) {
		t.Fatal("not copied")
	}
	m.expire() // it was used
	if !m.copies(p, size-3) {
		t.Fatal("the marks are gone although the mapping was used")
	}
	m.expire()
	m.expire()
	if m.copies(p, size-3) || m.Memory() != 0 {
		t.Errorf("an idle mapping has marks, or %d bytes", m.Memory())
	}
	if left := pageTables(t) - before; left > tables/8 {
		t.Errorf("%d bytes of page tables are left", left)
	}
	m.MarkResident(size-3, 3)
	if !m.copies(p, size-3) || string(p) != "end" {
		t.Errorf("used again: found %q", p)
	}
}

// Copies are right while page tables are dropped beneath them.
func TestCopiesWhilePageTablesAreDropped(t *testing.T) {
	const size = 64 * 4096
	want := content(size, 5)
	f := filled(t, want)
	m := mapped(t, f, size)
	m.faults = func() int64 { return m.lastFaults }
	m.MarkResident(0, size)
	end := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for p := make([]byte, size); ; {
				select {
				case <-end:
					return
				default:
				}
				if !m.copies(p, 0) || !bytes.Equal(p, want) {
					t.Error("not copied, or not the file's content")
					return
				}
			}
		})
	}
	for range 2000 {
		test.Must(t, dropPageTables(m.mem))
	}
	close(end)
	readers.Wait()
}
