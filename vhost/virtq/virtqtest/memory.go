package virtqtest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/vhost/guest"
)

// UserBase is added to a region's guest address to make its user address in Layout. They are never
// equal, so that a confusion of the two is detected.
const UserBase = 0x7f00_0000_0000

// Layout returns descriptions of adjacent regions of the given sizes, in bytes, from guest address
// base. Their user addresses are not adjacent.
func Layout(base uint64, sizes ...uint64) []guest.RegionDesc {
	var out []guest.RegionDesc
	for i, n := range sizes {
		out = append(out, guest.RegionDesc{
			GuestAddr: base, Size: n, UserAddr: UserBase + base + uint64(i)<<32,
		})
		base += n
	}
	return out
}

// Memory is guest memory as the driver sees it: one memfd per region.
type Memory struct {
	regions []guest.RegionDesc
	files   []*os.File
	maps    [][]byte // the whole file of each region
}

// NewMemory makes and maps a memfd for every region, large enough for its MmapOffset and Size.
func NewMemory(regions ...guest.RegionDesc) (*Memory, error) {
	m := &Memory{regions: regions}
	for i, r := range regions {
		if err := m.add(i, r); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

func (m *Memory) add(i int, r guest.RegionDesc) error {
	fd, err := unix.MemfdCreate(fmt.Sprintf("guest-%d", i), unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd of region [%v]: %w", r, err)
	}
	if err := unix.Ftruncate(fd, int64(r.MmapOffset+r.Size)); err != nil {
		unix.Close(fd)
		return fmt.Errorf("region [%v]: %w", r, err)
	}
	return m.mapFile(fd, r)
}

// OpenMemory maps memory of another process: one descriptor for each region, which the Memory then
// owns.
func OpenMemory(fds []int, regions ...guest.RegionDesc) (*Memory, error) {
	m := &Memory{regions: regions}
	for i, r := range regions {
		if err := m.mapFile(fds[i], r); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

func (m *Memory) mapFile(fd int, r guest.RegionDesc) error {
	m.files = append(m.files, os.NewFile(uintptr(fd), "guest memory"))
	b, err := unix.Mmap(fd, 0, int(r.MmapOffset+r.Size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map region [%v]: %w", r, err)
	}
	m.maps = append(m.maps, b)
	return nil
}

// Regions returns the descriptions, in the order given to NewMemory.
func (m *Memory) Regions() []guest.RegionDesc { return m.regions }

// FDs returns the regions' file descriptors, which the Memory owns.
func (m *Memory) FDs() []int {
	var out []int
	for _, f := range m.files {
		out = append(out, int(f.Fd()))
	}
	return out
}

// Table returns the device's view of the memory, with one reference.
func (m *Memory) Table() (*guest.Table, error) { return guest.NewTable(m.regions, m.FDs()) }

// Bytes returns the n bytes at guest address gpa in the driver's mapping, or nil if they do not lie
// within one region.
func (m *Memory) Bytes(gpa, n uint64) []byte {
	for i, r := range m.regions {
		if gpa >= r.GuestAddr && gpa-r.GuestAddr < r.Size && n <= r.Size-(gpa-r.GuestAddr) {
			off := r.MmapOffset + gpa - r.GuestAddr
			return m.maps[i][off : off+n : off+n]
		}
	}
	return nil
}

// User translates a guest address to the front-end virtual address for SET_VRING_ADDR; 0 if no
// region contains it.
func (m *Memory) User(gpa uint64) uint64 {
	for _, r := range m.regions {
		if gpa >= r.GuestAddr && gpa-r.GuestAddr < r.Size {
			return r.UserAddr + gpa - r.GuestAddr
		}
	}
	return 0
}

// Close unmaps the memory and closes its files.
func (m *Memory) Close() error {
	var errs []error
	for _, b := range m.maps {
		errs = append(errs, unix.Munmap(b))
	}
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	m.maps, m.files = nil, nil
	return errors.Join(errs...)
}
