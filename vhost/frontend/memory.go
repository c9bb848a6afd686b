package frontend

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cowblk/vhost/guest"
)

const (
	guestBase   = uint64(1) << 30        // guest address of the first region
	userBase    = uint64(0x7f0000000000) // user address of the first region
	userStep    = uint64(1) << 36        // from one region to the next
	regionAlign = 2 << 20                // bytes; a huge page, and SPDK's unit
)

// ErrNoMemory reports that the shared memory is too small.
var ErrNoMemory = errors.New("guest memory exhausted")

// Memory is the guest's memory: one memfd, mapped once here and divided into regions for the
// back-end.
type Memory struct {
	fd      int
	all     []byte
	regions []guest.RegionDesc
	next    uint64 // offset of the first free byte
}

func newMemory(size int64, regions int, huge bool) (*Memory, error) {
	flags := unix.MFD_CLOEXEC
	if huge {
		flags |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
	}
	fd, err := unix.MemfdCreate("guest", flags)
	if err != nil {
		return nil, fmt.Errorf("guest memory: memfd: %w", err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("guest memory: %d bytes: %w", size, err)
	}
	all, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("guest memory: mapping %d bytes (huge pages: %t): %w", size, huge,
			err)
	}
	m := &Memory{fd: fd, all: all}
	each := uint64(size) / uint64(regions)
	for i := range uint64(regions) {
		m.regions = append(m.regions, guest.RegionDesc{
			GuestAddr: guestBase + i*each, Size: each,
			UserAddr: userBase + i*userStep, MmapOffset: i * each,
		})
	}
	return m, nil
}

func (m *Memory) close() error {
	return errors.Join(unix.Munmap(m.all), unix.Close(m.fd))
}

// FD returns the memfd; the Frontend closes it.
func (m *Memory) FD() int { return m.fd }

// Regions returns the regions as announced. Each begins at the guest address where the one before
// ends.
func (m *Memory) Regions() []guest.RegionDesc { return m.regions }

// Bytes returns n bytes at a guest address, across regions if need be. It panics on addresses
// outside, like a slice expression.
func (m *Memory) Bytes(gpa, n uint64) []byte {
	off := gpa - guestBase
	return m.all[off : off+n : off+n]
}

// Alloc allocates n bytes from the heap at a multiple of align bytes and returns their guest
// address. They are never freed. Errors: ErrNoMemory.
func (m *Memory) Alloc(n, align uint64) (uint64, error) {
	at := (m.next + align - 1) / align * align
	if at+n > uint64(len(m.all)) {
		return 0, fmt.Errorf("%d bytes at %d of %d: %w", n, at, len(m.all), ErrNoMemory)
	}
	m.next = at + n
	return guestBase + at, nil
}

// user translates a guest address to the user address announced for it.
func (m *Memory) user(gpa uint64) uint64 {
	each := m.regions[0].Size
	i := (gpa - guestBase) / each
	return userBase + i*userStep + (gpa - guestBase - i*each)
}
