package cow

import "fmt"

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
		return fmt.Errorf("%s of %d bytes at byte %d: %w: the disk has %d bytes", op, n, off, ErrRange, d.size)
	}
	return nil
}

func (d *Disk) checkBuffers(r *Request) error {
	if err := d.checkRange(r.Op, r.Offset, r.Length); err != nil {
		return err
	}
	if !hasLength(r.Data, r.Length) {
		return fmt.Errorf("%s of %d bytes at byte %d: %w: buffers too short", r.Op, r.Length, r.Offset, ErrRange)
	}
	return nil
}
