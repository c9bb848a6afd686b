package vfs

import "unsafe"

// asWords returns a mapping, which is aligned, as words.
func asWords(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}
