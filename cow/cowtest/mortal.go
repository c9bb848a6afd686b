package cowtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"cowblk/cow/vfs"
)

// ErrDead is what every call on a Mortal file system returns after its death.
var ErrDead = errors.New("the process is dead")

// Mortal is a vfs.FS that dies at the n-th change made through it, as a process
// does that is killed: that change and all later ones do not happen, whoever
// makes them. Operations that are several to the kernel (removing a tree,
// replacing a file) count as several, so that running something again and again
// with n from 1 up kills it everywhere. Set the fields before use.
//
// What is written before the death stays, synced or not: the page cache outlives
// a process. Syncs are counted and not carried out.
type Mortal struct {
	vfs.FS
	// At is the change to die at, counted from 1; 0: never.
	At int
	// Begin says of a change made before counting has begun whether it is the
	// first to be counted; nil: the first of all is.
	Begin func(change string) bool
	// Die is called instead of the n-th change; nil: nothing is. It may not return.
	Die func(change string)

	mu      sync.Mutex
	counted []string
	begun   bool
	open    map[vfs.File]bool
	dead    atomic.Bool
}

// Dead reports whether the end has come.
func (m *Mortal) Dead() bool { return m.dead.Load() }

// Changes names those counted so far.
func (m *Mortal) Changes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.counted...)
}

// Bury closes the files that are still open, and with that gives up their locks.
func (m *Mortal) Bury() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for f := range m.open {
		f.Close()
	}
	m.open = nil
}

func (m *Mortal) change(format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	m.mu.Lock()
	if m.begun = m.begun || m.Begin == nil || m.Begin(what); m.begun && !m.dead.Load() {
		m.counted = append(m.counted, what)
		if len(m.counted) == m.At {
			m.dead.Store(true)
			if m.Die != nil {
				m.Die(what)
			}
		}
	}
	m.mu.Unlock()
	return m.alive()
}

func (m *Mortal) alive() error {
	if m.dead.Load() {
		return ErrDead
	}
	return nil
}

// OpenFile implements vfs.FS.
func (m *Mortal) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	err := m.alive()
	if flag&os.O_CREATE != 0 {
		err = m.change("create %s", name)
	}
	if err != nil {
		return nil, err
	}
	f, err := m.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open == nil {
		m.open = map[vfs.File]bool{}
	}
	m.open[f] = true
	return &mortalFile{f, m}, nil
}

// Rename implements vfs.FS.
func (m *Mortal) Rename(from, to string) error {
	if err := m.change("rename %s %s", from, to); err != nil {
		return err
	}
	return m.FS.Rename(from, to)
}

// Remove implements vfs.FS.
func (m *Mortal) Remove(name string) error {
	if err := m.change("remove %s", name); err != nil {
		return err
	}
	return m.FS.Remove(name)
}

// RemoveAll implements vfs.FS, one removal after the other.
func (m *Mortal) RemoveAll(name string) error {
	if err := m.alive(); err != nil {
		return err
	}
	st, err := m.FS.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.IsDir() {
		entries, err := m.FS.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := m.RemoveAll(filepath.Join(name, e.Name())); err != nil {
				return err
			}
		}
	}
	return m.Remove(name)
}

// MkdirAll implements vfs.FS, one directory after the other.
func (m *Mortal) MkdirAll(name string, perm fs.FileMode) error {
	if _, err := m.FS.Stat(name); err == nil {
		return m.alive()
	}
	if parent := filepath.Dir(name); parent != name {
		if err := m.MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := m.change("mkdir %s", name); err != nil {
		return err
	}
	return m.FS.MkdirAll(name, perm)
}

// Mkdir implements vfs.FS.
func (m *Mortal) Mkdir(name string, perm fs.FileMode) error {
	if err := m.change("mkdir %s", name); err != nil {
		return err
	}
	return m.FS.Mkdir(name, perm)
}

// SyncDir implements vfs.FS.
func (m *Mortal) SyncDir(dir string) error { return m.change("sync %s", dir) }

// Boot is that of the file system below, which has to be a vfs.SharedFS; so is Instance.
func (m *Mortal) Boot() (string, error) {
	if err := m.alive(); err != nil {
		return "", err
	}
	if fs, ok := m.FS.(vfs.SharedFS); ok {
		return fs.Boot()
	}
	return "", errors.ErrUnsupported
}

// Instance names the file system of a file that was opened through m.
func (m *Mortal) Instance(f vfs.File) (string, error) {
	if err := m.alive(); err != nil {
		return "", err
	}
	fs, shared := m.FS.(vfs.SharedFS)
	mortal, mine := f.(*mortalFile)
	if !shared || !mine {
		return "", errors.ErrUnsupported
	}
	return fs.Instance(mortal.File)
}

// ReadFile implements vfs.FS.
func (m *Mortal) ReadFile(name string) ([]byte, error) {
	if err := m.alive(); err != nil {
		return nil, err
	}
	return m.FS.ReadFile(name)
}

// WriteFileAtomic implements vfs.FS, step by step.
func (m *Mortal) WriteFileAtomic(name string, data []byte, perm fs.FileMode) error {
	return vfs.WriteAtomic(m, name, data, perm)
}

type mortalFile struct {
	vfs.File
	m *Mortal
}

func (f *mortalFile) Close() error {
	f.m.mu.Lock()
	open := f.m.open[f.File]
	delete(f.m.open, f.File)
	f.m.mu.Unlock()
	if !open { // buried
		return nil
	}
	return f.File.Close()
}

func (f *mortalFile) Preadv(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.m.alive(); err != nil {
		return 0, err
	}
	return f.File.Preadv(iov, off)
}

func (f *mortalFile) PreadvNowait(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.m.alive(); err != nil {
		return 0, err
	}
	return f.File.PreadvNowait(iov, off)
}

// AsyncFD and Map offer no way around the methods.
func (f *mortalFile) AsyncFD([]vfs.Iovec, int64) int { return -1 }

func (f *mortalFile) Map(int64) (*vfs.Mapping, error) { return nil, vfs.ErrNotMappable }

func (f *mortalFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.m.alive(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *mortalFile) Pwritev(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.m.change("write %s at %d", f.Name(), off); err != nil {
		return 0, err
	}
	return f.File.Pwritev(iov, off)
}

func (f *mortalFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.m.change("write %s at %d", f.Name(), off); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *mortalFile) PunchHole(off, n int64) error {
	if err := f.m.change("punch %s at %d", f.Name(), off); err != nil {
		return err
	}
	return f.File.PunchHole(off, n)
}

func (f *mortalFile) Datasync() error { return f.m.change("sync %s", f.Name()) }

func (f *mortalFile) Truncate(n int64) error {
	if err := f.m.change("truncate %s to %d", f.Name(), n); err != nil {
		return err
	}
	return f.File.Truncate(n)
}
