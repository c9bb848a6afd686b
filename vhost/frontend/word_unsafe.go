package frontend

import (
	"sync/atomic"
	"unsafe"
)

// word returns the 32-bit word at b[off:], a multiple of 4 in memory that Go does not move (a
// mapping). It gives access to the two 16-bit fields of a ring's first word, and to its event
// index.
func word(b []byte, off int) *uint32 {
	return (*uint32)(unsafe.Pointer((*[4]byte)(b[off:])))
}

// load and store are sequentially consistent, which orders them as acquire and release and keeps a
// load from passing an earlier store.
func load(p *uint32) uint32     { return atomic.LoadUint32(p) }
func store(p *uint32, v uint32) { atomic.StoreUint32(p, v) }
