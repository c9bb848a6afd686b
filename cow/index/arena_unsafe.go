package index

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapSlab returns a zero slab in anonymous memory, resident only where it is used, and its mapping.
// huge asks for one huge page, which saves most TLB misses of a large index; the first slab has
// none, so that a small index stays small. Where the kernel refuses a mapping (their number is
// limited) the slab comes from Go's heap and mapping is nil.
func mapSlab(huge bool) (s *slab, mapping []byte) {
	size := slabBytes
	if huge {
		size = 2 * slabBytes // room to align it
	}
	mapping, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return new(slab), nil
	}
	start := unsafe.Pointer(unsafe.SliceData(mapping))
	skip := 0
	if huge {
		skip = int(-uintptr(start) & (slabBytes - 1))
	}
	aligned := mapping[skip : skip+slabBytes]
	// Advice only: a kernel without huge pages refuses it.
	if huge {
		_ = unix.Madvise(aligned, unix.MADV_HUGEPAGE)
	} else {
		_ = unix.Madvise(aligned, unix.MADV_NOHUGEPAGE)
	}
	return (*slab)(unsafe.Pointer(unsafe.SliceData(aligned))), mapping
}

func unmap(mapping []byte) { _ = unix.Munmap(mapping) }
