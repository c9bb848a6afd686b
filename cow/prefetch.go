package cow

// Prefetch has the processor fetch what the Submit of each of rs will need from
// memory: who owns the first block of a read, and where that lies in a mapping,
// the first of its data. Nothing else comes of it, and no memory of the caller's is
// looked at. It pays for a few requests that are submitted right afterwards: while
// the data of one is copied, that of the next is on its way. (Random reads of 4 KiB
// from a GiB, 32 in flight, are 8 to 11 % faster.)
func (c *Channel) Prefetch(rs []*Request) {
	d := c.disk
	v := c.pinRead()
	defer c.unpinRead()
	for _, r := range rs {
		if r.Op != OpRead {
			continue
		}
		owner, _ := d.index.Lookup(d.block(r.Offset), 1)
		if owner > v.top {
			continue // promoted meanwhile
		}
		if s := &v.sources[owner]; s.mapping != nil && r.Offset < s.limit {
			s.mapping.Prefetch(s.start + r.Offset)
		}
	}
}
