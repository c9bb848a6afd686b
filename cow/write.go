package cow

import (
	"fmt"
	"io"
	"sync/atomic"

	"cowblk/cow/index"
	"cowblk/cow/vfs"
)

// modify serves a write, discard or write-zeroes. The caller handles r.FUA.
func (c *Channel) modify(r *Request) error {
	d := c.disk
	if d.readOnly {
		return ErrReadOnly
	}
	if err := d.failed.Load(); err != nil {
		return *err
	}
	if r.Op == OpWrite {
		if err := d.checkBuffers(r); err != nil {
			return err
		}
		c.cur.set(r.Data)
		v := c.pinWrite()
		defer c.endWrite(r)
		return c.writeRuns(r, v, r.Offset, r.Length)
	}
	for _, g := range r.Ranges {
		if err := d.checkRange(r.Op, g.Offset, g.Length); err != nil {
			return err
		}
	}
	if c.async {
		return errWouldWait // file systems are slow at punching holes
	}
	v := c.pinWrite()
	defer c.endWrite(r)
	for _, g := range r.Ranges {
		if err := c.zeroRange(v, g, r.Op == OpWriteZeroes); err != nil {
			return err
		}
	}
	return nil
}

// markUnflushed records that a write, discard or write-zeroes of the channel has changed the head,
// or may have. A request with FUA waits for a round anyway.
func (c *Channel) markUnflushed(r *Request) {
	if r.FUA || c.unflushed.Load() {
		return
	}
	c.unflushed.Store(true)
	c.disk.flusher.startTimer()
}

// endWrite is markUnflushed and unpinWrite.
func (c *Channel) endWrite(r *Request) {
	c.markUnflushed(r)
	c.unpinWrite()
}

// writeRuns writes n bytes of r from the cursor to the disk at byte pos, run by run.
func (c *Channel) writeRuns(r *Request, v *view, pos, n int64) error {
	for n > 0 {
		owner, m := c.disk.nextRun(v, pos, n)
		var err error
		switch {
		case owner > v.head: // superseded: see doc.go, "A write finds a newer owner"
			c.cur.advance(m)
		case owner < v.head:
			err = c.firstWrite(v, pos, m)
		case c.async && v.sources[v.head].direct != nil:
			err = c.submitAsync(r, v, &v.sources[v.head], pos, m, true)
		default:
			err = c.overwrite(v, pos, m)
		}
		if err != nil {
			return err
		}
		pos += m
		n -= m
	}
	return nil
}

// writeRunsLocked is writeRuns for a caller that holds the guard of all blocks. Nothing goes to the
// I/O engine, so all is written when it returns.
func (c *Channel) writeRunsLocked(v *view, pos, n int64) error {
	for n > 0 {
		owner, m := c.disk.nextRun(v, pos, n)
		var err error
		switch {
		case owner > v.head: // superseded
			c.cur.advance(m)
		case owner < v.head:
			err = c.writeNewBlocks(v, pos, m)
		default:
			err = c.overwrite(v, pos, m)
		}
		if err != nil {
			return err
		}
		pos += m
		n -= m
	}
	return nil
}

// nextRun returns the owner of the block with byte pos, and the number of bytes from pos on, at
// most n, that are served in the same way: they have that owner, or, if it is older than v's head,
// some owner older than the head, or none.
func (d *Disk) nextRun(v *view, pos, n int64) (owner index.Owner, m int64) {
	block, blocks := d.block(pos), d.touched(pos, n)
	owner, run := d.index.Lookup(block, blocks)
	if owner < v.head {
		run += d.runBelowHead(v, block+run, blocks-run)
	}
	return owner, min(n, d.endOf(pos, run)-pos)
}

// overwrite writes n bytes to blocks that the head owns. It is the hit path: a positional write and
// nothing else.
func (c *Channel) overwrite(v *view, pos, n int64) error {
	return c.writeHead(v, nil, n, nil, pos)
}

// runBelowHead counts the blocks from block on, at most limit, whose owner is older than the head,
// or that have none.
func (d *Disk) runBelowHead(v *view, block, limit uint64) (run uint64) {
	for run < limit {
		owner, n := d.index.Lookup(block+run, limit-run)
		if owner >= v.head {
			break
		}
		run += n
	}
	return run
}

// maxWrite is the most that one call writes into the page cache, in bytes, and the alignment of its
// pieces in the file. A file system with large folios (ext4, xfs) caches a write in folios as large
// as the write, and a later write of 4 KiB pays for every block of its folio. Measured on ext4 of
// Linux 6.18: 19,000 random overwrites a second in a file written 1 MiB at a time, 135,000 at 64
// KiB, 220,000 at 16 KiB. The first writes of a sequential stream get slower, from some 3.6 to 2.5
// GB/s at 32 KiB.
const maxWrite = 32 << 10

// writeHead writes leading, n bytes from the cursor, and trailing, one behind the other, to the
// head at disk byte pos: with one call for each piece of maxWrite, or for each full iov (direct
// I/O).
func (c *Channel) writeHead(v *view, leading []byte, n int64, trailing []byte, pos int64) error {
	s := &v.sources[v.head]
	for len(leading) > 0 || n > 0 || len(trailing) > 0 {
		iov := c.iov
		if len(leading) > 0 {
			iov = appendIovec(iov, leading)
		}
		most := n
		if s.direct == nil {
			off := s.start + pos + int64(len(leading))
			most = min(n, maxWrite-off&(maxWrite-1))
		}
		iov, covered := c.cur.iovecs(iov, most)
		behind := int64(0)
		if covered == n && len(trailing) > 0 && len(iov) < cap(iov) {
			iov = appendIovec(iov, trailing)
			behind = int64(len(trailing))
		}
		written, err := s.pwritev(iov, s.start+pos, int64(len(leading))+covered+behind)
		if err == nil && written == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("write at byte %d of the disk: %w", pos, err)
		}
		pos += int64(written)
		k := min(written, len(leading))
		leading, written = leading[k:], written-k
		m := min(int64(written), n)
		c.cur.advance(m)
		n -= m
		trailing = trailing[written-int(m):]
	}
	return nil
}

// pwritev writes iov, which has n bytes, at byte off of the file.
func (s *source) pwritev(iov []vfs.Iovec, off, n int64) (written int, err error) {
	if s.mapping == nil {
		return s.file.Pwritev(iov, off)
	}
	s.mapping.BeginWrite(off, n)
	written, err = s.file.Pwritev(iov, off)
	s.mapping.EndWrite(off, n, int64(written))
	return written, err
}

// firstWrite writes n bytes from the cursor to a run of blocks that the head did not own when the
// caller looked them up.
func (c *Channel) firstWrite(v *view, pos, n int64) error {
	d := c.disk
	from, to := d.block(pos), d.block(pos+n-1)
	partial := d.partial(pos, n)
	if c.async {
		if partial && !v.oldWritersGone.Load() || v.sources[v.head].direct != nil ||
			!d.guard.tryLock(c.claim, from, to) {
			return errWouldWait
		}
	} else {
		if partial {
			d.waitOldWriters(v) // before the guard, see synchronize
		}
		d.guard.lock(c.claim, from, to)
	}
	defer d.guard.unlock(c.claim)

	// Others may have written the blocks before us. A block whose owner is older than the head now
	// stays so until the guard is released.
	return c.writeRunsLocked(v, pos, n)
}

// writeNewBlocks makes the head the owner of the blocks that n bytes at pos touch. Edge blocks
// covered in part are completed with their owner's content, and all is written together. Once the
// data is in place the bits are set (from then on a flush round may make them durable), and then
// the index is raised (from then on reads go to the head).
//
// The caller holds the guard; if an edge is partial, the old writers are gone.
func (c *Channel) writeNewBlocks(v *view, pos, n int64) error {
	d := c.disk
	first, last := d.block(pos), d.block(pos+n-1)
	end := pos + n
	leading := c.leading[:pos-d.start(first)]
	trailing := c.trailing[:d.endOf(end-1, 1)-end]
	if len(leading) > 0 {
		if err := c.copyUp(v, first, leading, d.start(first)); err != nil {
			return err
		}
	}
	if len(trailing) > 0 {
		if err := c.copyUp(v, last, trailing, end); err != nil {
			return err
		}
	}
	if err := c.writeHead(v, leading, n, trailing, d.start(first)); err != nil {
		return err
	}
	c.raise(v, first, last-first+1)
	return nil
}

// copyUp reads the part of an edge block that the write does not cover into p.
func (c *Channel) copyUp(v *view, block uint64, p []byte, pos int64) error {
	owner, _ := c.disk.index.Lookup(block, 1)
	c.disk.counters.copyUps.Add(1)
	return c.readBelow(v, owner, p, pos)
}

// raise records that v's head owns n blocks from first on. Their data has been written. If a bit is
// not in a shared map, the request must be flushed before it is acknowledged.
func (c *Channel) raise(v *view, first, n uint64) {
	for n > 0 {
		added, shared := v.bitmap.Add(first, n)
		if !shared && !c.disk.loseUnflushed {
			c.setUnshared = true
			c.disk.unshared.added.Add(1) // before a lookup can find the head as owner
		}
		c.disk.index.Raise(first, added, v.head)
		c.disk.counters.firstWrites.Add(added)
		first += added
		n -= added
	}
}

// unsharedBits counts how often bits were set that no shared map has. Until they are durable they
// die with this process, and with them whatever is written over their blocks: a write that sets no
// bit waits for the flush too. Both counters stay 0 with a shared map, and with
// Options.LoseUnflushed.
type unsharedBits struct {
	added   atomic.Uint64 // incremented before the index is raised
	flushed atomic.Uint64 // value of added before the last round that succeeded
}

// any reports whether there are such bits. A caller that has found such a block in the index gets
// true until its bit is durable.
func (u *unsharedBits) any() bool { return u.added.Load() != u.flushed.Load() }
