package faultfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"

	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

// FS passes the calls on another file system, usually vfs.OS, to a Hook before it makes them, as a
// Process does with the calls on a machine. Operations that are several for the kernel (removing a
// tree, replacing a file) are made and passed step by step. Locks, sizes, identities and Close are
// not passed. Done, Through and Space of faults and calls are a Process's alone.
type FS struct {
	vfs.FS
	hook atomic.Pointer[Hook]
	mu   sync.Mutex
	open map[*hostFile]bool
}

// Over returns fsys with a hook; nil: none yet.
func Over(fsys vfs.FS, h Hook) *FS {
	x := &FS{FS: fsys, open: map[*hostFile]bool{}}
	x.SetHook(h)
	return x
}

// WithoutSync returns fsys without syncs: a test's files need not survive a power cut.
func WithoutSync(fsys vfs.FS) *FS {
	return Over(fsys, func(c Call) Fault { return Fault{Skip: c.IsSync()} })
}

// SetHook replaces the hook; nil removes it.
func (x *FS) SetHook(h Hook) { x.hook.Store(&h) }

// OnCall sets a hook that blocks calls or returns their errors; nil removes it.
func (x *FS) OnCall(f func(Call) error) {
	if f == nil {
		x.SetHook(nil)
		return
	}
	x.SetHook(func(c Call) Fault { return Fault{Err: f(c)} })
}

// CloseFiles closes the files that are still open, which releases their locks.
func (x *FS) CloseFiles() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for f := range x.open {
		f.File.Close()
	}
	clear(x.open)
}

// ask passes a call to the hook. skip: the call has its result already.
func (x *FS) ask(c Call) (f Fault, skip bool, err error) {
	if h := *x.hook.Load(); h != nil {
		f = h(c)
	}
	if f.Err != nil {
		return f, true, &fs.PathError{Op: c.Op, Path: c.Name, Err: f.Err}
	}
	return f, f.Skip, nil
}

// do passes a call to the hook, then makes it.
func (x *FS) do(c Call, f func() error) error {
	if _, skip, err := x.ask(c); skip {
		return err
	}
	return f()
}

// OpenFile implements vfs.FS.
func (x *FS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	c := Call{Op: "open", Name: name, Flag: flag}
	if flag&os.O_CREATE != 0 {
		c.Op = "create"
	}
	if _, _, err := x.ask(c); err != nil {
		return nil, err
	}
	under, err := x.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	f := &hostFile{under, x}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open[f] = true
	return f, nil
}

// Rename implements vfs.FS.
func (x *FS) Rename(from, to string) error {
	return x.do(Call{Op: "rename", Name: to, From: from},
		func() error { return x.FS.Rename(from, to) })
}

// Remove implements vfs.FS.
func (x *FS) Remove(name string) error {
	return x.do(Call{Op: "remove", Name: name}, func() error { return x.FS.Remove(name) })
}

// RemoveAll implements vfs.FS, one removal after the other.
func (x *FS) RemoveAll(name string) error { return removeAll(x, name) }

// removeAll implements vfs.FS.RemoveAll with other operations of fsys.
func removeAll(fsys vfs.FS, name string) error {
	st, err := fsys.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		entries, err := fsys.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := removeAll(fsys, path.Join(name, e.Name())); err != nil {
				return err
			}
		}
	}
	return fsys.Remove(name)
}

// Mkdir implements vfs.FS.
func (x *FS) Mkdir(name string, perm fs.FileMode) error {
	return x.do(Call{Op: "mkdir", Name: name}, func() error { return x.FS.Mkdir(name, perm) })
}

// MkdirAll implements vfs.FS in the steps of vfs.OS.
func (x *FS) MkdirAll(name string, perm fs.FileMode) error { return mkdirAll(x, name, perm) }

// mkdirAll implements vfs.FS.MkdirAll with other operations of fsys.
func mkdirAll(fsys vfs.FS, name string, perm fs.FileMode) error {
	name = path.Clean(name)
	if st, err := fsys.Stat(name); err == nil {
		if !st.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: errNotDir}
		}
		return nil
	}
	parent := path.Dir(name)
	if parent != name {
		if err := mkdirAll(fsys, parent, perm); err != nil {
			return err
		}
	}
	err := fsys.Mkdir(name, perm)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if serr := fsys.SyncDir(parent); serr != nil {
		if err == nil {
			_ = fsys.Remove(name)
		}
		return serr
	}
	return nil
}

// SyncDir implements vfs.FS.
func (x *FS) SyncDir(dir string) error {
	return x.do(Call{Op: "sync directory", Name: dir}, func() error { return x.FS.SyncDir(dir) })
}

// ReadFile implements vfs.FS; it is passed as an open and a read.
func (x *FS) ReadFile(name string) (p []byte, err error) {
	for _, op := range []string{"open", "read"} {
		if _, _, err := x.ask(Call{Op: op, Name: name}); err != nil {
			return nil, err
		}
	}
	return x.FS.ReadFile(name)
}

// WriteFileAtomic implements vfs.FS, step by step.
func (x *FS) WriteFileAtomic(name string, data []byte, perm fs.FileMode) error {
	return vfs.WriteAtomic(x, name, data, perm)
}

// hostFile is an open file of an FS.
type hostFile struct {
	vfs.File
	x *FS
}

func (f *hostFile) ask(op string, off, n int64) (Fault, bool, error) {
	return f.x.ask(Call{Op: op, Name: f.Name(), Off: off, Len: n})
}

func (f *hostFile) do(op string, off, n int64, call func() error) error {
	if _, skip, err := f.ask(op, off, n); skip {
		return err
	}
	return call()
}

// AsyncFD and Map must not bypass the methods below.
func (f *hostFile) AsyncFD([]vfs.Iovec, int64) int { return -1 }

func (f *hostFile) Map(int64, bool) (*pagecache.Mapping, error) {
	return nil, pagecache.ErrNotMappable
}

func (f *hostFile) Preadv(iov []vfs.Iovec, off int64) (int, error) {
	fault, _, err := f.ask("read", off, length(iov))
	if err != nil {
		return 0, err
	}
	return fault.corrupt(iov, f.File.Preadv, off)
}

func (f *hostFile) PreadvNowait(iov []vfs.Iovec, off int64) (int, error) {
	fault, _, err := f.x.ask(Call{Op: "read", Name: f.Name(), Off: off, Len: length(iov),
		Nowait: true})
	switch {
	case fault.Cold:
		return 0, vfs.ErrWouldBlock
	case err != nil:
		return 0, err
	}
	return fault.corrupt(iov, f.File.PreadvNowait, off)
}

func (f *hostFile) Pwritev(iov []vfs.Iovec, off int64) (int, error) {
	fault, _, err := f.ask("write", off, length(iov))
	if err != nil {
		return 0, err
	}
	return f.File.Pwritev(fault.shorten(iov), off)
}

// corrupt makes a read, short or with a wrong bit if f says so.
func (f Fault) corrupt(iov []vfs.Iovec, read func([]vfs.Iovec, int64) (int, error),
	off int64) (int, error) {
	n, err := read(f.shorten(iov), off)
	if f.Corrupt && n > 0 {
		*iov[0].Base ^= 1
	}
	return n, err
}

// shorten returns the first bytes of iov that a short call transfers.
func (f Fault) shorten(iov []vfs.Iovec) []vfs.Iovec {
	if f.Short == 0 {
		return iov
	}
	var short []vfs.Iovec
	for left := f.Short; left > 0 && len(iov) > 0; iov = iov[1:] {
		v := iov[0]
		v.SetLen(int(min(int64(v.Len), left)))
		short, left = append(short, v), left-int64(v.Len)
	}
	return short
}

func (f *hostFile) ReadAt(p []byte, off int64) (int, error) {
	if _, _, err := f.ask("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *hostFile) WriteAt(p []byte, off int64) (int, error) {
	if _, _, err := f.ask("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *hostFile) PunchHole(off, n int64) error {
	return f.do("punch", off, n, func() error { return f.File.PunchHole(off, n) })
}

func (f *hostFile) Truncate(n int64) error {
	return f.do("truncate", 0, n, func() error { return f.File.Truncate(n) })
}

func (f *hostFile) Datasync() error { return f.do("sync", 0, 0, f.File.Datasync) }

func (f *hostFile) DropCache() error { return f.do("drop cache", 0, 0, f.File.DropCache) }

func (f *hostFile) NextData(off int64) (start, end int64, err error) {
	if _, _, err := f.ask("next data", off, 0); err != nil {
		return 0, 0, err
	}
	return f.File.NextData(off)
}

// Close does nothing after CloseFiles.
func (f *hostFile) Close() error {
	f.x.mu.Lock()
	open := f.x.open[f]
	delete(f.x.open, f)
	f.x.mu.Unlock()
	if !open {
		return nil
	}
	return f.File.Close()
}
