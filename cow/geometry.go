package cow

import (
	"fmt"
	"runtime/debug"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// block returns the block that holds byte pos of the disk.
func (d *Disk) block(pos int64) uint64 { return uint64(pos) >> d.shift }

// start returns the first byte of a block.
func (d *Disk) start(block uint64) int64 { return int64(block << d.shift) }

// touched returns the number of blocks that hold any of the n > 0 bytes at pos.
func (d *Disk) touched(pos, n int64) uint64 { return d.block(pos+n-1) - d.block(pos) + 1 }

// endOf returns the byte behind the last of n blocks, the first of which holds byte pos. The disk's
// last block may be partial.
func (d *Disk) endOf(pos int64, n uint64) int64 {
	return min(d.start(d.block(pos)+n), d.size)
}

// partial reports whether n bytes at pos cover an edge block in part only.
func (d *Disk) partial(pos, n int64) bool {
	end := pos + n
	return pos&(d.blockSize-1) != 0 || end&(d.blockSize-1) != 0 && end != d.size
}

func (d *Disk) checkRange(op Op, off, n int64) error {
	if off < 0 || n < 0 || off > d.size || n > d.size-off {
		return fmt.Errorf("%s of %d bytes at byte %d: %w: the disk has %d bytes", op, n, off,
			ErrRange, d.size)
	}
	return nil
}

func (d *Disk) checkBuffers(r *Request) error {
	if err := d.checkRange(r.Op, r.Offset, r.Length); err != nil {
		return err
	}
	if !hasLength(r.Data, r.Length) {
		return fmt.Errorf("%s of %d bytes at byte %d: %w: buffers too short", r.Op, r.Length,
			r.Offset, ErrRange)
	}
	return nil
}

// cursor walks over a request's buffers.
type cursor struct {
	segs [][]byte
	off  int // bytes of segs[0] already used
}

func (k *cursor) set(segs [][]byte) { k.segs, k.off = segs, 0 }

// iovecs appends iovecs for at most n bytes from the cursor on to dst, up to dst's capacity, and
// returns the number of bytes that they cover. It does not move the cursor.
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

// piece returns the rest of the buffer at the cursor, at most n bytes of it; nil behind the last
// buffer. Empty buffers are skipped.
func (k *cursor) piece(n int64) []byte {
	for len(k.segs) > 0 {
		if p := k.segs[0][k.off:]; len(p) > 0 {
			return p[:min(int64(len(p)), n)]
		}
		k.segs, k.off = k.segs[1:], 0
	}
	return nil
}

// zero clears the next n bytes and moves behind them. A guest's memory may have lost its backing:
// the fault is then a panic, which Channel.perform recovers.
func (k *cursor) zero(n int64) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for n > 0 {
		p := k.piece(min(n, maxCopy))
		if p == nil {
			return
		}
		clear(p)
		k.advance(int64(len(p)))
		n -= int64(len(p))
	}
}

// checksum returns the data checksum of the next n bytes, which are of one unit, and moves behind
// them.
func (k *cursor) checksum(n int64) uint32 {
	var d layer.Digest
	for n > 0 {
		p := k.piece(n)
		if p == nil {
			break
		}
		d.Add(p)
		k.advance(int64(len(p)))
		n -= int64(len(p))
	}
	return d.Sum()
}

// copyFrom copies p to the buffers and moves behind it.
func (k *cursor) copyFrom(p []byte) {
	for len(p) > 0 {
		to := k.piece(int64(len(p)))
		if to == nil {
			return
		}
		copy(to, p)
		k.advance(int64(len(to)))
		p = p[len(to):]
	}
}

// hasLength reports whether the buffers have at least n bytes.
func hasLength(segs [][]byte, n int64) bool {
	for _, s := range segs {
		n -= int64(len(s))
		if n <= 0 {
			return true
		}
	}
	return n <= 0
}
