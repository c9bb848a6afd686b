package cow

import "fmt"

// zeroRange makes the whole blocks of g read as zeros: their bit is set over a hole in the head's
// data. The parts of edge blocks are written as zeros if zeroes is set, and keep their content
// otherwise.
func (c *Channel) zeroRange(v *view, g Range, zeroes bool) error {
	d := c.disk
	pos, end := g.Offset, g.Offset+g.Length
	from := d.start(d.block(pos + d.blockSize - 1)) // first block that begins in g
	to := d.start(d.block(end))
	if end == d.size {
		to = end // g reaches the end of the last block, which may be partial
	}
	if from >= to { // no whole block
		if zeroes {
			return c.writeZeros(v, pos, end)
		}
		return nil
	}
	if zeroes {
		if err := c.writeZeros(v, pos, from); err != nil {
			return err
		}
	}
	if err := c.zeroBlocks(v, from, to); err != nil {
		return err
	}
	if zeroes {
		return c.writeZeros(v, to, end)
	}
	return nil
}

// writeZeros writes zeros from byte pos to byte end, less than two blocks.
func (c *Channel) writeZeros(v *view, pos, end int64) error {
	for pos < end {
		n := min(end-pos, int64(len(c.disk.zeroBlock)))
		c.zeros[0] = c.disk.zeroBlock[:n]
		c.cur.set(c.zeros[:])
		if err := c.writeRuns(nil, v, pos, n); err != nil {
			return err
		}
		pos += n
	}
	return nil
}

// zeroBlocks makes the blocks from byte pos to byte end read as zeros.
func (c *Channel) zeroBlocks(v *view, pos, end int64) error {
	for pos < end {
		owner, n := c.disk.nextRun(v, pos, end-pos)
		var err error
		switch {
		case owner == v.head:
			err = c.punch(v, pos, n)
		case owner < v.head:
			err = c.zeroNewBlocks(v, pos, n)
		}
		if err != nil {
			return err
		}
		pos += n
	}
	return nil
}

// zeroNewBlocks is zeroBlocks for blocks that the head did not own when the caller looked them up.
// It holds the guard, as every first write does.
func (c *Channel) zeroNewBlocks(v *view, pos, n int64) error {
	d := c.disk
	d.guard.lock(c.claim, d.block(pos), d.block(pos+n-1))
	defer d.guard.unlock(c.claim)

	for end := pos + n; pos < end; {
		block := d.block(pos)
		owner, run := d.index.Lookup(block, d.touched(pos, end-pos))
		if owner == 0 && block < d.baseBlocks {
			run = min(run, d.baseBlocks-block)
		}
		n := min(end, d.endOf(pos, run)) - pos
		switch {
		case owner > v.head: // superseded
		case owner == 0 && block >= d.baseBlocks:
			// No layer owns the block, and the base does not reach it: it reads as zeros already.
		default:
			// Also punched when the head does not own the block yet: the head's data may hold the
			// rest of a failed write, or earlier content of the device.
			if err := c.punch(v, pos, n); err != nil {
				return err
			}
			if owner < v.head {
				c.raise(v, block, run)
			}
		}
		pos += n
	}
	return nil
}

func (c *Channel) punch(v *view, pos, n int64) error {
	if v.bitmap != nil {
		v.bitmap.MarkPunched()
	}
	s := &v.sources[v.head]
	if err := s.punchHole(s.start+pos, n); err != nil {
		return fmt.Errorf("discard %d bytes at byte %d of the disk: %w", n, pos, err)
	}
	return nil
}

// punchHole makes n bytes from byte off of the file a hole. A page fault in it costs more than a
// read, and on some file systems space, so the mapping must not be used for it.
func (s *source) punchHole(off, n int64) error {
	if s.mapping == nil {
		return s.file.PunchHole(off, n)
	}
	s.mapping.BeginWrite(off, n)
	s.mapping.Unmark(off, n)
	err := s.file.PunchHole(off, n)
	s.mapping.Unmark(off, n) // reads have marked pages meanwhile
	s.mapping.EndWrite(off, n, 0)
	return err
}
