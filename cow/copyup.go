package cow

import "sync/atomic"

// firstWrite writes n bytes from the cursor to a run of blocks that the head did not own when the
// caller looked them up.
func (c *Channel) firstWrite(v *view, pos, n int64) error {
	d := c.disk
	from, to := d.block(pos), d.block(pos+n-1)
	partial := d.partial(pos, n)
	if c.async {
		if partial && !v.oldWritersGone.Load() || v.sources[v.head].direct != nil || !d.guard.tryLock(c.claim, from, to) {
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
