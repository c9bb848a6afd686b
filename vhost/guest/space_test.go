package guest

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// huge returns a memfd of 2^50 bytes, all of it a hole.
func huge(t *testing.T) int {
	t.Helper()
	fd := memfd(t, "huge", 1)
	test.Must(t, unix.Ftruncate(fd, 1<<50))
	return fd
}

// A front-end with sparse files cannot exhaust the process's address space.
func TestAddressSpaceIsBounded(t *testing.T) {
	fd := huge(t)
	const tib = 1 << 40
	part := func(i uint64) RegionDesc {
		return RegionDesc{GuestAddr: i * 4 * tib, Size: 4 * tib, UserAddr: i * 4 * tib}
	}
	var s Space
	test.ErrorIs(t, test.Err(s.NewTable([]RegionDesc{{Size: 17 * tib}}, []int{fd})), ErrRegion,
		"17 TiB in one region")
	all, err := s.NewTable([]RegionDesc{part(0), part(1), part(2), part(3)}, []int{fd, fd, fd, fd})
	test.Must(t, err)
	test.ErrorIs(t, test.Err(all.With(part(4), fd)), ErrRegion, "a fifth part")
	// The same front-end's next table, while the former one is still mapped.
	test.ErrorIs(t, test.Err(s.NewTable([]RegionDesc{part(0)}, []int{fd})), ErrRegion,
		"another table")
	less, err := all.Without(part(3))
	test.Must(t, err)
	all.Release()
	again, err := less.With(part(5), fd)
	test.Must(t, err, "after one was removed")
	less.Release()
	again.Release()
	if b, n := s.bytes.Load(), s.mappings.Load(); b != 0 || n != 0 {
		t.Errorf("%d bytes and %d mappings are left in the account", b, n)
	}
}

// Requests that never end may keep former tables, but only a bounded number.
func TestFormerTablesAreBounded(t *testing.T) {
	fd := memfd(t, "guest", 1<<20)
	var s Space
	var held []*Table
	for {
		next, err := s.NewTable([]RegionDesc{{Size: 4096}}, []int{fd})
		if err != nil {
			if !errors.Is(err, ErrRegion) {
				t.Error(err)
			}
			break
		}
		held = append(held, next)
	}
	test.Equal(t, len(held), MaxMappings, "tables at once")
	for _, x := range held {
		x.Release()
	}
	test.Equal(t, s.mappings.Load(), 0, "mappings are left in the account")
}

// A regular file of a file system other than memory or a local disk.
func TestForeignFileSystems(t *testing.T) {
	f, err := os.Open("/sys/kernel/notes")
	if err != nil {
		f, err = os.Open("/sys/kernel/mm/transparent_hugepage/enabled")
	}
	test.Must(t, err)
	defer f.Close()
	st, err := f.Stat()
	test.Must(t, err)
	_, err = NewTable([]RegionDesc{{Size: uint64(st.Size())}}, []int{int(f.Fd())})
	test.ErrorIs(t, err, ErrRegion, st.Size())
}
