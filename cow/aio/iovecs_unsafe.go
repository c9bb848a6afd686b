package aio

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iovec is a struct iovec without a pointer. With a pointer, storing it could run the garbage
// collector's write barrier on a stale address in the slot.
type iovec struct {
	base uintptr
	size uint64 // bytes
}

// shortIovecs is the number of iovecs of a slot in the dense part of the memory. A longer list goes
// to the sparse part, most pages of which are never used.
const shortIovecs = 8

// iovecs is the anonymous memory for the iovec arrays of depth slots: first shortIovecs for each,
// then MaxIovecs for each.
type iovecs struct {
	mapping []byte
	all     []iovec
	sparse  int // index into all of the first long list
}

func newIovecs(depth int) (iovecs, error) {
	n := depth * (shortIovecs + MaxIovecs)
	mapping, err := unix.Mmap(-1, 0, n*int(unsafe.Sizeof(iovec{})),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return iovecs{}, fmt.Errorf("memory for the iovecs of %d operations: %w", depth, err)
	}
	all := unsafe.Slice((*iovec)(unsafe.Pointer(unsafe.SliceData(mapping))), n)
	return iovecs{mapping: mapping, all: all, sparse: depth * shortIovecs}, nil
}

// store copies iov into the memory of slot and returns its address there.
func (m *iovecs) store(slot uint32, iov []unix.Iovec) uintptr {
	dst := m.all[int(slot)*shortIovecs:][:shortIovecs]
	if len(iov) > shortIovecs {
		dst = m.all[m.sparse+int(slot)*MaxIovecs:][:MaxIovecs]
	}
	copy(dst, unsafe.Slice((*iovec)(unsafe.Pointer(unsafe.SliceData(iov))), len(iov)))
	return uintptr(unsafe.Pointer(unsafe.SliceData(dst)))
}

func (m *iovecs) release() {
	if m.mapping != nil {
		unix.Munmap(m.mapping)
	}
	*m = iovecs{}
}
