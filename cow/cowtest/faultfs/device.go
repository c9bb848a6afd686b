package faultfs

// Device knows what a power cut would leave: the certain content, and the pending changes.
type Device struct {
	tree    *tree // the certain content
	boots   int   // of the machine so far
	pending []*Record
}

// Apply applies the next record of a tape.
func (d *Device) Apply(r *Record) {
	switch {
	case r.Kind == Sync:
		d.syncFile(r)
	case r.Kind == SyncDir:
		if !r.Failed {
			d.syncDir(r.node)
		}
	case r.isData():
		d.pending = append(d.pending, r)
	case r.isName():
		if r.Kind == Create {
			d.tree.make(r.node, r.dir)
		}
		d.pending = append(d.pending, r)
	}
}

// Pending returns the changes that a cut may or may not keep, oldest first.
func (d *Device) Pending() []*Record { return d.pending }

// syncFile makes the changes of a file certain, or loses some.
func (d *Device) syncFile(s *Record) {
	rest := d.pending[:0:0]
	for i, r := range d.pending {
		if r.node != s.node || !r.isData() {
			rest = append(rest, r)
			continue
		}
		switch {
		case !s.Failed || s.Through == All:
			commit(d.tree, r, nil)
		case s.Through == Half:
			commit(d.tree, r, func(sector int64) bool { return (sector+int64(i))%2 == 0 })
		}
	}
	d.pending = rest
}

// syncDir makes the name changes of a directory certain, and earlier changes of the same names in
// other directories.
func (d *Device) syncDir(dir inode) {
	take := make([]bool, len(d.pending))
	for i, r := range d.pending {
		for _, e := range r.entries {
			take[i] = take[i] || e.dir == dir
		}
	}
	d.addDependencies(take)
	rest := d.pending[:0:0]
	for i, r := range d.pending {
		if take[i] {
			commit(d.tree, r, nil)
		} else {
			rest = append(rest, r)
		}
	}
	d.pending = rest
}

// addDependencies adds to a choice of pending changes the earlier name changes that they depend on.
func (d *Device) addDependencies(take []bool) {
	type key struct {
		dir  inode
		name string
	}
	var needed map[key]bool
	for i := len(d.pending) - 1; i >= 0; i-- {
		r := d.pending[i]
		if !r.isName() {
			continue
		}
		for _, e := range r.entries {
			take[i] = take[i] || needed[key{e.dir, e.name}]
		}
		if !take[i] {
			continue
		}
		if needed == nil {
			needed = map[key]bool{}
		}
		for _, e := range r.entries {
			needed[key{e.dir, e.name}] = true
		}
	}
}

// lengthSector is the sector number that stands for the change of a file's length.
const lengthSector = -1

// commit applies a change to t, or those sectors of it that are kept (nil: all).
func commit(t *tree, r *Record, keep func(sector int64) bool) {
	if r.isName() {
		for _, e := range r.entries {
			if t.node(e.dir) != nil {
				t.link(e.dir, e.name, e.id)
				t.writable(e.dir).mtime = r.mtime
			}
		}
		return
	}
	if keep == nil {
		keep = func(int64) bool { return true }
	}
	t.writable(r.node).mtime = r.mtime
	if r.Kind == Truncate {
		if keep(lengthSector) {
			t.resize(r.node, r.Len)
		}
		return
	}
	if r.Kind == Write && r.Off+r.Len > t.node(r.node).size && keep(lengthSector) {
		t.writable(r.node).size = r.Off + r.Len
	}
	for off, end := r.Off, r.Off+r.Len; off < end; {
		// A run of sectors that are all kept or all lost.
		kept := keep(off / SectorSize)
		stop := min(end, (off/SectorSize+1)*SectorSize)
		for stop < end && keep(stop/SectorSize) == kept {
			stop = min(end, stop+SectorSize)
		}
		switch {
		case !kept:
		case r.Kind == Write:
			t.write(r.node, off, r.Data[off-r.Off:stop-r.Off], false)
		default:
			t.zero(r.node, off, stop-off)
		}
		off = stop
	}
}
