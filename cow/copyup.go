package cow

import "sync/atomic"

// firstWrite writes n bytes from the cursor to a run of blocks that the head
// did not own when its caller looked.
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
			d.waitOldWriters(v) // before the guard, see waitQuiet
		}
		d.guard.lock(c.claim, from, to)
	}
	defer d.guard.unlock(c.claim)

	// Others may have had the blocks before us. What is below the head now
	// stays there until we give the claim back.
	return c.writeRunsLocked(v, pos, n)
}

// writeNewBlocks makes the head the owner of the blocks that n bytes at pos touch. Edge
// blocks covered in part are completed with their owner's content, and all is
// written in one go. Only when the data is in place are the bits set (from then
// on a flush round may make them durable) and only then is the index raised
// (from then on reads go to the head).
//
// The claim is held; if an edge is partial, v is settled.
func (c *Channel) writeNewBlocks(v *view, pos, n int64) error {
	d := c.disk
	first, last := d.block(pos), d.block(pos+n-1)
	end := pos + n
	before := c.before[:pos-d.start(first)]
	after := c.after[:d.endOf(end-1, 1)-end]
	if len(before) > 0 {
		if err := c.copyUp(v, first, before, d.start(first)); err != nil {
			return err
		}
	}
	if len(after) > 0 {
		if err := c.copyUp(v, last, after, end); err != nil {
			return err
		}
	}
	if err := c.writeHead(v, before, n, after, d.start(first)); err != nil {
		return err
	}
	c.raise(v, first, last-first+1)
	return nil
}

// copyUp reads the part of one edge block that the write leaves alone.
func (c *Channel) copyUp(v *view, block uint64, p []byte, pos int64) error {
	owner, _ := c.disk.index.Lookup(block, 1)
	c.disk.counters.copyUps.Add(1)
	return c.readBelow(v, owner, p, pos)
}

// raise records that v's head owns n blocks from first on. Their data has been
// written. It is where a request finds out that its bits must be flushed before it is
// acknowledged.
func (c *Channel) raise(v *view, first, n uint64) {
	for n > 0 {
		added, shared := v.bitmap.Add(first, n)
		if !shared && !c.disk.loseUnflushed {
			c.setUnshared = true
			c.disk.unshared.added.Add(1) // before anybody can find the head to own them
		}
		c.disk.index.Raise(first, added, v.head)
		c.disk.counters.firstWrites.Add(added)
		first += added
		n -= added
	}
}

// unsharedBits counts the times at which blocks came to a head whose bits no shared map keeps.
// Until the bits are durable they would die with this process, and with them whatever is
// written over those blocks: also a write that sets no bit waits for the flush then.
// Both stay 0 where there is a shared map, or nothing has to be kept.
type unsharedBits struct {
	added   atomic.Uint64 // one more before the index says that the head owns the blocks
	flushed atomic.Uint64 // what added was before the last round that has succeeded
}

// any reports whether there are such blocks. A caller that has found one in the index
// before gets true until it is durable.
func (u *unsharedBits) any() bool { return u.added.Load() != u.flushed.Load() }
