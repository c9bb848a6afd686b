package faultfs

import (
	"io"
	"sync/atomic"

	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

// file is one open file of a process.
type file struct {
	p    *Process
	name string
	id   inode
}

var _ vfs.File = (*file)(nil)

func (f *file) Name() string { return f.name }

func (f *file) call(op string, off, n int64) Call {
	return Call{Op: op, Name: f.name, Off: off, Len: n}
}

func (f *file) writeCall(off, n int64) Call {
	c := f.call("write", off, n)
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	node := f.p.m.tree.node(f.id)
	c.Space, c.pages = node.needsSpace(off, n), node.missing(off, n)
	return c
}

func length(iov []vfs.Iovec) (n int64) {
	for i := range iov {
		n += int64(iov[i].Len)
	}
	return n
}

func (f *file) Preadv(iov []vfs.Iovec, off int64) (int, error) { return f.preadv(iov, off, false) }

func (f *file) PreadvNowait(iov []vfs.Iovec, off int64) (int, error) {
	return f.preadv(iov, off, true)
}

func (f *file) preadv(iov []vfs.Iovec, off int64, nowait bool) (int, error) {
	n := length(iov)
	c := f.call("read", off, n)
	c.Nowait = nowait
	fault, err := f.p.ask(c)
	switch {
	case err != nil:
		return 0, err
	case nowait && fault.Cold:
		return 0, vfs.ErrWouldBlock
	case fault.Err != nil:
		return 0, fault.Err
	}
	if fault.Short > 0 {
		n = min(n, fault.Short)
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	done := 0
	for _, v := range iov {
		p := memory(v)
		p = p[:min(int64(len(p)), n-int64(done))]
		got := m.tree.node(f.id).read(p, off+int64(done))
		done += got
		if got < len(p) {
			break
		}
	}
	return done, nil
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	fault, err := f.p.ask(f.call("read", off, int64(len(p))))
	if err == nil {
		err = fault.Err
	}
	if err != nil {
		return 0, err
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.tree.node(f.id).read(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) Pwritev(iov []vfs.Iovec, off int64) (int, error) {
	p := make([]byte, 0, length(iov))
	for _, v := range iov {
		p = append(p, memory(v)...)
	}
	fault, err := f.p.ask(f.writeCall(off, int64(len(p))))
	if err != nil {
		return 0, err
	}
	switch {
	case fault.Err != nil:
		p = p[:min(fault.Done, int64(len(p)))]
	case fault.Short > 0:
		p = p[:min(fault.Short, int64(len(p)))]
	}
	f.write(p, off)
	if fault.Err != nil {
		return 0, fault.Err
	}
	return len(p), nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	p = append([]byte(nil), p...)
	fault, err := f.p.ask(f.writeCall(off, int64(len(p))))
	if err != nil {
		return 0, err
	}
	if fault.Err != nil {
		p = p[:min(fault.Done, int64(len(p)))]
	}
	f.write(p, off)
	return len(p), fault.Err
}

// write writes p at off; the record owns p from now on.
func (f *file) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tree.write(f.id, off, p, true)
	f.changed(&Record{Kind: Write, Off: off, Len: int64(len(p)), Data: p})
}

// changed records a change of the file's data.
func (f *file) changed(r *Record) {
	m := f.p.m
	r.Name, r.node, r.mtime = f.name, f.id, m.now()
	m.tree.writable(f.id).mtime = r.mtime
	m.record(r)
}

func (f *file) PunchHole(off, n int64) error {
	fault, err := f.p.ask(f.call("punch", off, n))
	if err != nil {
		return err
	}
	if fault.Err != nil {
		n = min(n, fault.Done)
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 && inMemory(f.name) {
		for i := off / 8; i < (off+n)/8; i++ {
			atomic.StoreUint64(&m.shared[f.id][i], 0)
		}
		return fault.Err
	}
	if n > 0 {
		m.freeSpace(f.name, f.id, false,
			func() { m.tree.zero(f.id, off, min(n, m.tree.node(f.id).size-off)) })
		f.changed(&Record{Kind: Punch, Off: off, Len: n})
	}
	return fault.Err
}

func (f *file) Truncate(n int64) error {
	fault, err := f.p.ask(f.call("truncate", 0, n))
	if err == nil {
		err = fault.Err
	}
	if err != nil {
		return err
	}
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	f.truncate(n)
	return nil
}

// truncate is Truncate with the machine locked.
func (f *file) truncate(n int64) {
	f.p.m.freeSpace(f.name, f.id, false, func() { f.p.m.tree.resize(f.id, n) })
	f.changed(&Record{Kind: Truncate, Len: n})
}

func (f *file) Datasync() error {
	fault, err := f.p.ask(f.call("sync", 0, 0))
	if err != nil {
		return err
	}
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	f.p.m.record(&Record{Kind: Sync, Name: f.name, node: f.id, Failed: fault.Err != nil,
		Through: fault.Through})
	return fault.Err
}

func (f *file) Size() (int64, error) {
	if f.p.dead.Load() {
		return 0, ErrDead
	}
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	return f.p.m.tree.node(f.id).size, nil
}

func (f *file) NextData(off int64) (start, end int64, err error) {
	fault, err := f.p.ask(f.call("next data", off, 0))
	if err == nil {
		err = fault.Err
	}
	if err != nil {
		return 0, 0, err
	}
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	if inMemory(f.name) {
		return f.nextShared(off)
	}
	start, end, ok := f.p.m.tree.node(f.id).data(off)
	if !ok {
		return 0, 0, io.EOF
	}
	return start, end, nil
}

// Lock is flock: a lock belongs to the open file.
func (f *file) Lock(exclusive bool) error {
	if f.p.dead.Load() {
		return ErrDead
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, ex := range m.locks[f.id] {
		if other != f && (ex || exclusive) {
			return vfs.ErrLocked
		}
	}
	if m.locks[f.id] == nil {
		m.locks[f.id] = map[*file]bool{}
	}
	m.locks[f.id][f] = exclusive
	return nil
}

// LockRange is a lock of an open file description; a file has one range at most.
func (f *file) LockRange(off, n int64, exclusive bool) error {
	if f.p.dead.Load() {
		return ErrDead
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, r := range m.ranges[f.id] {
		if other != f && (r.exclusive || exclusive) && off < r.end && r.off < off+n {
			return vfs.ErrLocked
		}
	}
	if m.ranges[f.id] == nil {
		m.ranges[f.id] = map[*file]rangeLock{}
	}
	m.ranges[f.id][f] = rangeLock{off, off + n, exclusive}
	return nil
}

// LockImage is QEMU's lock of an image: a writer, and a reader that needs content that does not
// change, exclude each other.
func (f *file) LockImage(a vfs.ImageAccess) error {
	if f.p.dead.Load() {
		return ErrDead
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for other, has := range m.images[f.id] {
		if other != f && a != vfs.ImageForced && (a == vfs.ImageWrite || has == vfs.ImageWrite) {
			delete(m.images[f.id], f)
			return &vfs.ImageLockError{Path: f.name, Wanted: a, Writer: has == vfs.ImageWrite}
		}
	}
	if m.images[f.id] == nil {
		m.images[f.id] = map[*file]vfs.ImageAccess{}
	}
	m.images[f.id][f] = a
	return nil
}

func (f *file) Identity() (vfs.Identity, error) {
	if f.p.dead.Load() {
		return vfs.Identity{}, ErrDead
	}
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	n := f.p.m.tree.node(f.id)
	return vfs.Identity{Dev: 1, Inode: uint64(f.id), Size: n.size, MTime: n.mtime}, nil
}

func (f *file) AdviseRandom() error { return nil }

// DropCache drops clean content and reads it from the device again: data that a failed sync has
// lost disappears.
func (f *file) DropCache() error {
	fault, err := f.p.ask(f.call("drop cache", 0, 0))
	if err == nil {
		err = fault.Err
	}
	if err != nil {
		return err
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tape == nil || inMemory(f.name) {
		return nil
	}
	on := m.device.tree.clone().node(f.id)
	if on == nil {
		return nil // older than the tape, or removed
	}
	m.tree.nodes[f.id] = on
	for _, r := range m.device.pending {
		if r.node == f.id && r.isData() {
			commit(m.tree, r, nil)
		}
	}
	return nil
}

// AsyncFD and Map must not bypass the methods.
func (f *file) AsyncFD([]vfs.Iovec, int64) int { return -1 }

func (f *file) Map(int64, bool) (*pagecache.Mapping, error) { return nil, pagecache.ErrNotMappable }

// Close releases the locks. It calls no hook and cannot fail.
func (f *file) Close() error {
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	delete(f.p.m.locks[f.id], f)
	delete(f.p.m.ranges[f.id], f)
	delete(f.p.m.images[f.id], f)
	return nil
}
