package cow

// SubmitBatch is Submit for each of rs, in order. It serves a few requests at a time. Before the
// first of them, the CPU prefetches from memory what their reads need. Reads that follow each other
// share a pin (see pins), so that the loads of one need not wait for the stores of the one before.
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
			c.releaseReadPin() // a write may take long
		}
		c.submit(r)
	}
	c.releaseReadPin()
}

// maxPrefetch is how many requests prefetch handles together.
const maxPrefetch = 8

// prefetch looks up the owner of the first block of each read and has the CPU load the first bytes
// of its data, where it lies in a mapping. All owners are looked up first, so that the CPU can wait
// for several cache lines at once. It has no other effect and touches no memory of the caller.
// (Random reads of 4 KiB from a GiB, 32 in flight, are 8 to 11 % faster.)
//
// Submit uses the owner that was found. The owner may have changed meanwhile, which is harmless:
// the read was submitted before the change.
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
