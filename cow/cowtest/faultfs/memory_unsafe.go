package faultfs

import (
	"unsafe"

	"cowblk/cow/vfs"
)

// memory is what an iovec points to.
func memory(v vfs.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }
