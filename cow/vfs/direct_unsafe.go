package vfs

import "unsafe"

// aligned reports whether this I/O can be direct. Each piece must be a whole number of blocks:
// kernels differ in what else they accept.
func (d *directFile) aligned(iov []Iovec, off int64) bool {
	bits := uintptr(off) & (d.offset - 1)
	for i := range iov {
		bits |= uintptr(unsafe.Pointer(iov[i].Base))&(d.memory-1) | uintptr(iov[i].Len)&(d.offset-1)
	}
	return bits == 0
}
