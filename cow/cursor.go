package cow

import (
	"fmt"
	"runtime/debug"

	"cowblk/cow/vfs"
)

// cursor walks over a request's buffers.
type cursor struct {
	segs [][]byte
	off  int // bytes of segs[0] already used
}

func (k *cursor) set(segs [][]byte) { k.segs, k.off = segs, 0 }

// iovecs appends iovecs for at most n bytes from the cursor on to dst, as far as
// dst's capacity goes, without moving the cursor. It returns how many bytes they
// cover.
func (k *cursor) iovecs(dst []vfs.Iovec, n int64) ([]vfs.Iovec, int64) {
	var got int64
	off := k.off
	for _, s := range k.segs {
		if got == n || len(dst) == cap(dst) {
			break
		}
		s = s[off:]
		off = 0
		if len(s) == 0 {
			continue
		}
		if int64(len(s)) > n-got {
			s = s[:n-got]
		}
		dst = appendIovec(dst, s)
		got += int64(len(s))
	}
	return dst, got
}

func appendIovec(dst []vfs.Iovec, b []byte) []vfs.Iovec {
	v := vfs.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(dst, v)
}

// advance moves the cursor n bytes on.
func (k *cursor) advance(n int64) {
	for n > 0 && len(k.segs) > 0 {
		left := int64(len(k.segs[0]) - k.off)
		if n < left {
			k.off += int(n)
			return
		}
		n -= left
		k.segs, k.off = k.segs[1:], 0
	}
}

// zero clears the next n bytes and moves behind them. It is the one place where
// this package itself stores into the caller's memory: memory of a guest may
// have lost its backing, and that must fail the request, not the process.
func (k *cursor) zero(n int64) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			if f, ok := p.(interface{ Addr() uintptr }); ok {
				err = fmt.Errorf("%w: address %#x", ErrFault, f.Addr())
				return
			}
			panic(p)
		}
	}()
	for n > 0 && len(k.segs) > 0 {
		s := k.segs[0][k.off:]
		if int64(len(s)) > n {
			s = s[:n]
		}
		clear(s)
		k.advance(int64(len(s)))
		n -= int64(len(s))
		if len(s) == 0 { // an empty buffer: advance(0) does not step over it
			k.segs, k.off = k.segs[1:], 0
		}
	}
	return nil
}

// holds reports whether the buffers have at least n bytes.
func holds(segs [][]byte, n int64) bool {
	for _, s := range segs {
		n -= int64(len(s))
		if n <= 0 {
			return true
		}
	}
	return n <= 0
}
