package layer

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapWords returns n zero words of anonymous memory outside Go's heap, resident only where they are
// used, and the mapping for unix.Munmap.
func mapWords(n uint64) (words []uint64, mapping []byte, err error) {
	mapping, err = unix.Mmap(-1, 0, int(n*8), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	// A single bit must not use a huge page. Kernels without huge pages refuse the advice.
	_ = unix.Madvise(mapping, unix.MADV_NOHUGEPAGE)
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mapping))), n), mapping, nil
}

// wordBytes returns the memory of words as bytes.
func wordBytes(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(words)*8)
}

// littleEndian converts words between the machine's byte order and the file's, in place. It does
// nothing on a little-endian machine.
func littleEndian(words []uint64) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return
	}
	for i, w := range words {
		words[i] = bits.ReverseBytes64(w)
	}
}

// advance drops the first n bytes of v, which has more than n.
func advance(v *unix.Iovec, n int) {
	v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
	v.SetLen(int(v.Len) - n)
}
