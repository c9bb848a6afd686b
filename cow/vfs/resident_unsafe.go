package vfs

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageShift is log2 of the page size of one bit, in bytes.
const pageShift = 12

// residency is one bit a page, in anonymous memory that is resident only where bits are set.
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
	// A single bit must not use a huge page. Kernels without huge pages refuse the advice.
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	r.mem = mem
	r.words = asWords(mem)
	return nil
}

// asWords returns a mapping, which is aligned, as words.
func asWords(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}

// has reports whether the bits of all pages of n bytes from off are set.
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

// set sets the bits of all pages of n bytes from off.
func (r *residency) set(off, n int64) {
	for page, last := uint64(off)>>pageShift, uint64(off+n-1)>>pageShift; page <= last; {
		word, mask := span(page, last)
		if w := &r.words[word]; atomic.LoadUint64(w)&mask != mask {
			atomic.OrUint64(w, mask)
		}
		page = (word + 1) * 64
	}
}

// span returns the word with page's bit, and in it the bits from page to last.
func span(page, last uint64) (word, mask uint64) {
	word = page / 64
	mask = ^uint64(0) << (page % 64)
	if end := word*64 + 63; last < end {
		mask &= ^uint64(0) >> (end - last)
	}
	return word, mask
}

// clear clears all bits: the kernel takes the memory and provides zeros later.
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
