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

// dropPageTables frees the page tables of a mapping of a file. madvise(2) empties them and, before
// Linux 6.14, keeps them, so the mapping is replaced by a second one of the same file (mremap(2),
// "if the value of old_size is zero"), in one system call: a copy that runs meanwhile takes page
// faults.
func dropPageTables(mem []byte) error {
	addr, n := unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem))
	second, err := unix.MremapPtr(addr, 0, nil, n, unix.MREMAP_MAYMOVE)
	if err != nil {
		return err
	}
	_, err = unix.MremapPtr(second, n, addr, n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED)
	if err != nil {
		_ = unix.MunmapPtr(second, n)
	}
	return err
}
