package pagecache

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapWords returns n words of anonymous memory, resident only where they are not zero, and their
// mapping.
func mapWords(n int) (words []uint64, mem []byte, err error) {
	mem, err = unix.Mmap(-1, 0, n*8, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	// A single bit must not use a huge page. Kernels without huge pages refuse the advice.
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), n), mem, nil
}

// contains reports whether mem holds the byte at an address.
func contains(mem []byte, addr uintptr) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	return addr >= start && addr < start+uintptr(len(mem))
}

// mincore is mincore(2): it sets one byte a page, the lowest bit of which says whether the page is
// resident.
func mincore(mem []byte, resident *byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(mem))),
		uintptr(len(mem)), uintptr(unsafe.Pointer(resident)))
	if errno != 0 {
		return errno
	}
	return nil
}
