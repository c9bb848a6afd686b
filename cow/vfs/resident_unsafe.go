package vfs

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageShift is the log of the size of the pages that one bit stands for, in bytes.
const pageShift = 12

// residency is one bit a page, in anonymous memory that is touched only where
// bits are set.
type residency struct {
	words []uint64
	mem   []byte
}

func (r *residency) init(length int64) error {
	words := (length + 64<<pageShift - 1) / (64 << pageShift)
	mem, err := unix.Mmap(-1, 0, int(words*8), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	// One bit must not cost a huge page. Kernels without them refuse.
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	r.mem = mem
	r.words = asWords(mem)
	return nil
}

// asWords is a mapping, which is aligned, as words.
func asWords(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}

// has reports whether the bit of every page of n bytes from off is set.
func (r *residency) has(off, n int64) bool {
	if n == 0 {
		return true
	}
	for page, last := uint64(off)>>pageShift, uint64(off+n-1)>>pageShift; page <= last; {
		word, mask := span(page, last)
		if atomic.LoadUint64(&r.words[word])&mask != mask {
			return false
		}
		page = (word + 1) * 64
	}
	return true
}

// set sets the bit of every page of n bytes from off.
func (r *residency) set(off, n int64) {
	for page, last := uint64(off)>>pageShift, uint64(off+n-1)>>pageShift; page <= last; {
		word, mask := span(page, last)
		if w := &r.words[word]; atomic.LoadUint64(w)&mask != mask {
			atomic.OrUint64(w, mask)
		}
		page = (word + 1) * 64
	}
}

// span is the word that holds page's bit, and in it the bits from page to last.
func span(page, last uint64) (word, mask uint64) {
	word = page / 64
	mask = ^uint64(0) << (page % 64)
	if end := word*64 + 63; last < end {
		mask &= ^uint64(0) >> (end - last)
	}
	return word, mask
}

// clear forgets all bits: the kernel takes the memory and gives zeros later.
func (r *residency) clear() { _ = unix.Madvise(r.mem, unix.MADV_DONTNEED) }

func (r *residency) free() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	r.mem, r.words = nil, nil
}

// contains reports whether mem holds the byte at an address.
func contains(mem []byte, addr uintptr) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	return addr >= start && addr < start+uintptr(len(mem))
}
