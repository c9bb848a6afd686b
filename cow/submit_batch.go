package cow

// SubmitBatch is Submit for each of rs, in order. It pays for a few requests at a
// time: the processor fetches what reads will need from memory, of several at once,
// before the first is served; and reads that follow each other share a pin (see
// pins), so that the loads of one need not wait for the stores of the one before.
func (c *Channel) SubmitBatch(rs []*Request) {
	for len(rs) > 0 {
		n := min(len(rs), maxPrefetch)
		c.submitBatch(rs[:n])
		rs = rs[n:]
	}
}

func (c *Channel) submitBatch(rs []*Request) {
	if len(rs) == 1 {
		c.Submit(rs[0])
		return
	}
	c.cacheReadPin()
	c.prefetch(c.pinRead(), rs)
	for _, r := range rs {
		if r.Op == OpRead {
			c.cacheReadPin()
		} else {
			c.releaseReadPin() // it may take long
		}
		c.submit(r)
	}
	c.releaseReadPin()
}

// maxPrefetch is how many requests prefetch looks at together.
const maxPrefetch = 8

// prefetch has the processor fetch who owns the first block of each read, and where
// that lies in a mapping, the first of its data. It first looks all owners up, then at
// what depends on them, so that the processor can wait for several at once. Nothing
// else comes of it, and no memory of the caller's is looked at. (Random reads of 4 KiB
// from a GiB, 32 in flight, are 8 to 11 % faster.)
//
// What it finds of a read is kept for its Submit: that the owner may have changed
// meanwhile is no harm, because the read had been asked for before.
func (c *Channel) prefetch(v *view, rs []*Request) {
	d := c.disk
	for _, r := range rs {
		if r.Op == OpRead {
			r.prefetched.view = v.seq
			r.prefetched.owner, r.prefetched.run = d.index.Lookup(d.block(r.Offset), d.touched(r.Offset, r.Length))
		}
	}
	for _, r := range rs {
		if r.Op != OpRead || r.prefetched.owner > v.top {
			continue // or promoted meanwhile
		}
		if s := &v.sources[r.prefetched.owner]; s.mapping != nil && r.Offset < s.limit {
			s.mapping.Prefetch(s.start + r.Offset)
		}
	}
}
