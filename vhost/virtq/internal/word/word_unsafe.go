//go:build 386 || amd64 || arm || arm64 || loong64 || mipsle || mips64le || ppc64le || riscv64

package word

import (
	"sync/atomic"
	"unsafe"
)

// ptr returns the word at off; the conversion to an array checks the bounds.
func ptr(p []byte, off int) *uint32 {
	return (*uint32)(unsafe.Pointer((*[4]byte)(p[off:])))
}

// Load32 reads the word at off, a multiple of 4.
func Load32(p []byte, off int) uint32 { return atomic.LoadUint32(ptr(p, off)) }

// Store32 writes the word at off, a multiple of 4. Both halves must belong to the caller: the other
// side's write to one of them would be lost.
func Store32(p []byte, off int, v uint32) { atomic.StoreUint32(ptr(p, off), v) }

// Put32 writes the word at off, a multiple of 4, for a process that uses the memory after this
// thread was killed: it keeps its place among the thread's stores, but orders nothing for a
// concurrent reader. It is not inlined, because the compiler moves no store past a call.
//
//go:noinline
func Put32(p []byte, off int, v uint32) { *ptr(p, off) = v }

// Load16 reads the field at off, a multiple of 2.
func Load16(p []byte, off int) uint16 {
	return uint16(Load32(p, off&^3) >> (8 * uint(off&2)))
}

// Store16 writes the field at off, a multiple of 2, atomically, and preserves its neighbour in the
// word: if the neighbour changes meanwhile, the swap fails and is repeated. A device must not use
// it, because a guest that keeps changing the neighbour would block it.
func Store16(p []byte, off int, v uint16) {
	w := ptr(p, off&^3)
	shift := 8 * uint(off&2)
	for {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

// Replace16 writes the field at off, a multiple of 2, in a bounded number of steps whatever others
// do to its neighbour, which is preserved. Between two steps the field reads as 0, so it is for
// event indexes: a reader of the wrong value sends a needless notification, or acts on its own
// earlier write, which the writer's next Load sees.
func Replace16(p []byte, off int, v uint16) {
	w := ptr(p, off&^3)
	shift := 8 * uint(off&2)
	atomic.AndUint32(w, ^(uint32(0xffff) << shift))
	atomic.OrUint32(w, uint32(v)<<shift)
}

// Aligned reports whether p[0] is at a multiple of n bytes, a power of two. It concerns this
// process's address, not the front-end's; they differ when a region's offset in its file is odd.
func Aligned(p []byte, n uintptr) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))&(n-1) == 0
}
