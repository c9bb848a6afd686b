package guest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

const page = 4096

// memfd returns the descriptor of a file of n bytes. Its byte i is i/256, and its name in
// /proc/self/maps contains name.
func memfd(t testing.TB, name string, n int) int {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	test.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i >> 8)
	}
	test.Must(t, test.Err(unix.Pwrite(fd, b, 0)))
	return fd
}

// mappings counts the mappings of files whose name contains name.
func mappings(t testing.TB, name string) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	test.Must(t, err)
	return strings.Count(string(maps), name)
}

// twoPlusOne is a table of two adjacent regions and one behind a gap, all of one file. In the file
// the second precedes the first, and the third has an offset that is not page-aligned.
func twoPlusOne(t testing.TB) *Table {
	t.Helper()
	fd := memfd(t, "two-plus-one", 8*page)
	tab, err := NewTable([]RegionDesc{
		{GuestAddr: 0x1000, Size: 2 * page, UserAddr: 0x70000, MmapOffset: 2 * page},
		{GuestAddr: 0x3000, Size: page, UserAddr: 0x90000, MmapOffset: 0},
		{GuestAddr: 0x10000, Size: 2*page - 16, UserAddr: 0x40010, MmapOffset: 4*page + 16},
	}, []int{fd, fd, fd})
	test.Must(t, err)
	t.Cleanup(tab.Release)
	return tab
}

func TestNewTableChecks(t *testing.T) {
	fd := memfd(t, "checks", 4*page)
	ok := RegionDesc{GuestAddr: 0x10000, Size: page, UserAddr: 0x50000}
	text := test.Texts(t, "region.texts")
	for _, tc := range []struct {
		name string
		r    RegionDesc
		fd   int
		good bool
	}{
		{"beside", RegionDesc{GuestAddr: 0x11000, Size: page, UserAddr: 0x51000}, fd, true},
		{"before", RegionDesc{GuestAddr: 0xf000, Size: page, UserAddr: 0x4f000}, fd, true},
		{"whole file", RegionDesc{GuestAddr: 0, Size: 4 * page, UserAddr: 0}, fd, true},
		{"odd offset", RegionDesc{GuestAddr: 0, Size: 100, UserAddr: 0, MmapOffset: 4*page - 100},
			fd, true},
		{"size 0", RegionDesc{GuestAddr: 0, Size: 0, UserAddr: 0}, fd, false},
		{"guest overlap, first byte", RegionDesc{GuestAddr: 0x10fff, Size: page, UserAddr: 0}, fd,
			false},
		{"guest overlap, last byte", RegionDesc{GuestAddr: 0xf001, Size: page, UserAddr: 0}, fd,
			false},
		{"guest overlap, around", RegionDesc{GuestAddr: 0xf000, Size: 4 * page, UserAddr: 0}, fd,
			false},
		{"user overlap", RegionDesc{GuestAddr: 0, Size: page, UserAddr: 0x50800}, fd, false},
		{"guest wraps", RegionDesc{GuestAddr: 1<<64 - page, Size: 2 * page, UserAddr: 0}, fd,
			false},
		{"user wraps", RegionDesc{GuestAddr: 0, Size: 2 * page, UserAddr: 1<<64 - page}, fd, false},
		{"offset wraps", RegionDesc{GuestAddr: 0, Size: page, UserAddr: 0,
			MmapOffset: 1<<64 - page}, fd, false},
		{"size huge", RegionDesc{GuestAddr: 0, Size: 1<<64 - 1, UserAddr: 0}, fd, false},
		{"beyond file", RegionDesc{GuestAddr: 0, Size: 4*page + 1, UserAddr: 0}, fd, false},
		{"offset beyond file", RegionDesc{GuestAddr: 0, Size: page, UserAddr: 0,
			MmapOffset: 4 * page}, fd, false},
		{"not a file", RegionDesc{GuestAddr: 0, Size: page, UserAddr: 0}, pipe(t), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tab, err := NewTable([]RegionDesc{ok, tc.r}, []int{fd, tc.fd})
			if err == nil {
				tab.Release()
			}
			test.Equal(t, mappings(t, "memfd:checks"), 0, "mappings are left")
			if text(t, tc.name, err); !errors.Is(err, ErrRegion) != tc.good {
				t.Errorf("error %v", err)
			}
		})
	}
	test.ErrorIs(t, test.Err(NewTable([]RegionDesc{ok}, nil)), ErrRegion, "a region without a file")
	test.ErrorIs(t, test.Err(NewTable([]RegionDesc{ok}, []int{-1})), unix.EBADF, "a bad descriptor")
}

func pipe(t *testing.T) int {
	r, w, err := os.Pipe()
	test.Must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return int(r.Fd())
}

func TestTooManyRegions(t *testing.T) {
	fd := memfd(t, "many", page)
	var rs []RegionDesc
	var fds []int
	for i := range uint64(MaxRegions) {
		rs = append(rs, RegionDesc{GuestAddr: i * page, Size: page, UserAddr: i * page})
		fds = append(fds, fd)
	}
	tab, err := NewTable(rs, fds)
	test.Must(t, err)
	defer tab.Release()
	if b, err := tab.Append(nil, 0, MaxRegions*page); err != nil || len(b) != MaxRegions {
		t.Errorf("all of the memory: %d slices, error %v", len(b), err)
	}
	next := RegionDesc{GuestAddr: MaxRegions * page, Size: page, UserAddr: MaxRegions * page}
	test.ErrorIs(t, test.Err(tab.With(next, fd)), ErrRegion, MaxRegions+1)
}

func TestAddRemoveRegions(t *testing.T) {
	fd := memfd(t, "add-remove", 2*page)
	a := RegionDesc{GuestAddr: 0x1000, Size: page, UserAddr: 0x1000}
	b := RegionDesc{GuestAddr: 0x8000, Size: page, UserAddr: 0x8000, MmapOffset: page}
	empty, err := NewTable(nil, nil)
	test.Must(t, err)
	one, err := empty.With(a, fd)
	test.Must(t, err)
	two, err := one.With(b, fd)
	test.Must(t, err)
	if n := mappings(t, "add-remove"); n != 2 {
		t.Errorf("%d mappings with two regions in three tables, expected 2", n)
	}
	bytesOfA, err := two.Slice(0x1000, page)
	test.Must(t, err)
	// The offset in REM_MEM_REG is ignored, as front-ends send any value.
	onlyB, err := two.Without(RegionDesc{GuestAddr: 0x1000, Size: page, UserAddr: 0x1000,
		MmapOffset: 77})
	test.Must(t, err)
	for _, wrong := range []RegionDesc{a, {GuestAddr: 0x8000, Size: 2 * page, UserAddr: 0x8000},
		{GuestAddr: 0x8000, Size: page}} {
		test.ErrorIs(t, test.Err(onlyB.Without(wrong)), ErrRegion, wrong)
	}
	if got := fmt.Sprint(two.Regions(), onlyB.Regions()); got != fmt.Sprint([]RegionDesc{a, b},
		[]RegionDesc{b}) {
		t.Errorf("regions are %s", got)
	}
	empty.Release()
	one.Release()
	two.Acquire() // a request in flight
	two.Release()
	if n := mappings(t, "add-remove"); n != 2 {
		t.Errorf("%d mappings while a request holds the old table, expected 2", n)
	}
	bytesOfA[0]++ // still mapped, or the test crashes
	two.Release()
	if n := mappings(t, "add-remove"); n != 1 {
		t.Errorf("%d mappings with one region left, expected 1", n)
	}
	onlyB.Release()
	if n := mappings(t, "add-remove"); n != 0 {
		t.Errorf("%d mappings in the end, expected 0", n)
	}
}

func TestReleaseTwicePanics(t *testing.T) {
	tab, err := NewTable(nil, nil)
	test.Must(t, err)
	tab.Release()
	defer func() {
		if recover() == nil {
			t.Error("a second Release went unnoticed")
		}
	}()
	tab.Release()
}

// A hugetlbfs file is mapped and unmapped in whole huge pages, wherever its regions begin and end.
// The memory is not accessed, so no huge page need be free.
func TestHugePages(t *testing.T) {
	fd, err := unix.MemfdCreate("huge-pages", unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	test.Must(t, err)
	defer unix.Close(fd)
	test.Must(t, unix.Ftruncate(fd, 1<<31))
	tab, err := NewTable([]RegionDesc{
		{GuestAddr: 0, Size: 1 << 20, UserAddr: 0, MmapOffset: 3 << 20},
		{GuestAddr: 1 << 30, Size: 1<<30 + page, UserAddr: 1 << 30, MmapOffset: 4 << 20},
	}, []int{fd, fd})
	test.Must(t, err)
	if b, err := tab.Slice(1<<30, 1<<30+page); err != nil || len(b) != 1<<30+page {
		t.Errorf("%d bytes, error %v", len(b), err)
	}
	test.Equal(t, mappings(t, "memfd:huge-pages"), 2, "mappings of two regions")
	tab.Release()
	test.Equal(t, mappings(t, "memfd:huge-pages"), 0, "mappings are left")
}
