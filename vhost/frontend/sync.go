package frontend

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// StatusError is a request that the device completed with an error status.
type StatusError struct {
	Op     Op
	Status byte
	Off    int64 // bytes
}

func (e *StatusError) Error() string {
	name := "no status"
	switch e.Status {
	case StatusOK:
		name = "OK"
	case StatusIOErr:
		name = "IOERR"
	case StatusUnsup:
		name = "UNSUPP"
	}
	return fmt.Sprintf("request type %d at %d: status %d (%s)", e.Op, e.Off, e.Status, name)
}

// do runs one request on a free slot and waits for it. It keeps other completions for Poll.
func (d *Driver) do(slot int, op Op, off int64, n int) (written uint32, err error) {
	if err := d.Submit(slot, op, off, n); err != nil {
		return 0, err
	}
	c, err := d.finish(slot)
	if err != nil {
		return 0, err
	}
	if c.Status != StatusOK {
		return c.Written, &StatusError{Op: op, Status: c.Status, Off: off}
	}
	return c.Written, nil
}

// finish kicks and waits for one request by its ID.
func (d *Driver) finish(id int) (Completion, error) {
	if err := d.Kick(); err != nil {
		return Completion{}, err
	}
	for {
		d.scratch = d.take(d.scratch[:0])
		var found *Completion
		for i := range d.scratch {
			if d.scratch[i].ID == id {
				found = &d.scratch[i]
			} else {
				d.stashed = append(d.stashed, d.scratch[i])
			}
		}
		if found != nil {
			return *found, nil
		}
		if err := d.waitRing(); err != nil {
			return Completion{}, err
		}
	}
}

// freeSlot returns a slot that is not in flight; it waits for one if necessary.
func (d *Driver) freeSlot() (int, error) {
	if len(d.slots) == 0 {
		return 0, fmt.Errorf("a ring of %d descriptors has no slot without indirect descriptors: %w", d.ring.Num, ErrBusy)
	}
	for {
		if len(d.free) >= 3 || (d.indirect && len(d.free) > 0) {
			for i := range d.slots {
				if !d.slots[i].busy {
					return i, nil
				}
			}
		}
		if err := d.Kick(); err != nil {
			return 0, err
		}
		if err := d.waitRing(); err != nil {
			return 0, err
		}
		d.stashed = d.take(d.stashed)
	}
}

// each runs op on n bytes from off, one buffer at a time. before and after get the slot's buffer
// and its offset in the n bytes.
func (d *Driver) each(op Op, off int64, n int, before, after func(buf []byte, done int)) error {
	for done := 0; done < n; {
		slot, err := d.freeSlot()
		if err != nil {
			return err
		}
		buf := d.slots[slot].buf
		buf = buf[:min(len(buf), n-done)]
		if before != nil {
			before(buf, done)
		}
		if _, err := d.do(slot, op, off+int64(done), len(buf)); err != nil {
			return err
		}
		if after != nil {
			after(buf, done)
		}
		done += len(buf)
	}
	return nil
}

// ReadAt reads p at off bytes on the disk, both multiples of 512. Errors: *StatusError, or those of
// Wait.
func (d *Driver) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	err := d.each(OpRead, off, len(p), nil, func(buf []byte, done int) {
		n = done + copy(p[done:], buf)
	})
	return n, err
}

// WriteAt writes p at off bytes on the disk, like ReadAt.
func (d *Driver) WriteAt(p []byte, off int64) (int, error) {
	n := 0
	err := d.each(OpWrite, off, len(p), func(buf []byte, done int) {
		n = done
		copy(buf, p[done:])
	}, nil)
	if err == nil {
		n = len(p)
	}
	return n, err
}

func (d *Driver) one(op Op, n int, fill func(buf []byte)) (slot int, written uint32, err error) {
	if slot, err = d.freeSlot(); err != nil {
		return 0, 0, err
	}
	if fill != nil {
		fill(d.slots[slot].buf)
	}
	written, err = d.do(slot, op, 0, n)
	return slot, written, err
}

// Flush makes all completed writes durable.
func (d *Driver) Flush() error {
	_, _, err := d.one(OpFlush, 0, nil)
	return err
}

// Range is a piece of the disk, in bytes, multiples of 512.
type Range struct {
	Off, Len int64
	Unmap    bool // write-zeroes may deallocate
}

// rangeSize is the size of struct virtio_blk_discard_write_zeroes in bytes.
const rangeSize = 16

// PutRanges writes ranges into b in the format of discard and write-zeroes, and returns their
// length in bytes.
func PutRanges(b []byte, ranges ...Range) int {
	for i, r := range ranges {
		e := b[i*rangeSize:]
		binary.LittleEndian.PutUint64(e, uint64(r.Off)/sectorSize)
		binary.LittleEndian.PutUint32(e[8:], uint32(r.Len/sectorSize))
		var flags uint32
		if r.Unmap {
			flags = 1
		}
		binary.LittleEndian.PutUint32(e[12:], flags)
	}
	return len(ranges) * rangeSize
}

// Discard discards the content of the ranges.
func (d *Driver) Discard(ranges ...Range) error {
	_, _, err := d.one(OpDiscard, len(ranges)*rangeSize, func(b []byte) { PutRanges(b, ranges...) })
	return err
}

// WriteZeroes makes the ranges read as zeros.
func (d *Driver) WriteZeroes(ranges ...Range) error {
	_, _, err := d.one(OpWriteZeroes, len(ranges)*rangeSize,
		func(b []byte) { PutRanges(b, ranges...) })
	return err
}

// idSize is VIRTIO_BLK_ID_BYTES.
const idSize = 20

// GetID returns the device's serial number.
func (d *Driver) GetID() (string, error) {
	slot, _, err := d.one(OpGetID, idSize, func(b []byte) { clear(b[:idSize]) })
	if err != nil {
		return "", err
	}
	id, _, _ := bytes.Cut(d.slots[slot].buf[:idSize], []byte{0})
	return string(id), nil
}
