package cowtest

import (
	"io/fs"
	"sync/atomic"

	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

// Call is one call on a file.
type Call struct {
	Op   string // open, preadv (also without waiting), pwritev, writeat, punch, datasync, truncate
	Name string // of the file
	Flag int    // of open
	Off  int64
	Len  int64 // bytes
}

// Intercept is a vfs.FS that passes every call to a function before it makes the call. The function
// may block; its error, unless nil, is returned instead of the call.
type Intercept struct {
	vfs.FS
	onCall atomic.Pointer[func(Call) error]
	cold   atomic.Pointer[func(Call) bool]
}

// OnCall sets the function; nil removes it. It runs on the caller's goroutine, concurrently.
func (x *Intercept) OnCall(f func(Call) error) {
	if f == nil {
		x.onCall.Store(nil)
		return
	}
	x.onCall.Store(&f)
}

// Cold sets the function that says which reads find nothing in memory: a read without waiting then
// returns vfs.ErrWouldBlock and is not passed to OnCall.
func (x *Intercept) Cold(f func(Call) bool) { x.cold.Store(&f) }

func (x *Intercept) call(c Call) error {
	if f := x.onCall.Load(); f != nil {
		return (*f)(c)
	}
	return nil
}

// OpenFile implements vfs.FS.
func (x *Intercept) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := x.call(Call{Op: "open", Name: name, Flag: flag}); err != nil {
		return nil, err
	}
	f, err := x.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &interceptedFile{f, x}, nil
}

type interceptedFile struct {
	vfs.File
	x *Intercept
}

func (f *interceptedFile) call(op string, off, n int64) error {
	return f.x.call(Call{Op: op, Name: f.Name(), Off: off, Len: n})
}

func (f *interceptedFile) Preadv(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.call("preadv", off, length(iov)); err != nil {
		return 0, err
	}
	return f.File.Preadv(iov, off)
}

// PreadvNowait is passed on as a preadv.
func (f *interceptedFile) PreadvNowait(iov []vfs.Iovec, off int64) (int, error) {
	if cold := f.x.cold.Load(); cold != nil && (*cold)(Call{Op: "preadv", Name: f.Name(), Off: off, Len: length(iov)}) {
		return 0, vfs.ErrWouldBlock
	}
	if err := f.call("preadv", off, length(iov)); err != nil {
		return 0, err
	}
	return f.File.PreadvNowait(iov, off)
}

// AsyncFD and Map must not bypass the methods above.
func (f *interceptedFile) AsyncFD([]vfs.Iovec, int64) int { return -1 }

func (f *interceptedFile) Map(int64) (*pagecache.Mapping, error) {
	return nil, pagecache.ErrNotMappable
}

func (f *interceptedFile) Pwritev(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.call("pwritev", off, length(iov)); err != nil {
		return 0, err
	}
	return f.File.Pwritev(iov, off)
}

func (f *interceptedFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.call("writeat", off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *interceptedFile) PunchHole(off, n int64) error {
	if err := f.call("punch", off, n); err != nil {
		return err
	}
	return f.File.PunchHole(off, n)
}

func (f *interceptedFile) Datasync() error {
	if err := f.call("datasync", 0, 0); err != nil {
		return err
	}
	return f.File.Datasync()
}

func (f *interceptedFile) Truncate(n int64) error {
	if err := f.call("truncate", 0, n); err != nil {
		return err
	}
	return f.File.Truncate(n)
}

func length(iov []vfs.Iovec) (n int64) {
	for i := range iov {
		n += int64(iov[i].Len)
	}
	return n
}
