package cowtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

// ErrKilled is returned by every call on a KillFS after the kill.
var ErrKilled = errors.New("the process is dead")

// KillFS is a vfs.FS that simulates the kill of a process at the n-th change: that change and all
// later ones do not happen, whichever goroutine makes them. Operations that are several for the
// kernel (removing a tree, replacing a file) count as several, so that repeating something with n
// from 1 up kills it at every point. Set the fields before use.
//
// Everything written before the kill stays, synced or not: the page cache outlives a process. Syncs
// are counted and not performed.
type KillFS struct {
	vfs.FS
	// KillAt is the change to be killed at, counted from 1; 0: never.
	KillAt int
	// Begin says whether counting begins with a change; nil: with the first.
	Begin func(change string) bool
	// OnKill is called instead of the n-th change; nil: nothing is. It need not return.
	OnKill func(change string)

	mu      sync.Mutex
	counted []string
	begun   bool
	open    map[vfs.File]bool
	killed  atomic.Bool
}

// Killed reports whether the kill has happened.
func (m *KillFS) Killed() bool { return m.killed.Load() }

// Changes returns the changes counted so far.
func (m *KillFS) Changes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.counted...)
}

// CloseFiles closes the files that are still open, which releases their locks.
func (m *KillFS) CloseFiles() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for f := range m.open {
		f.Close()
	}
	m.open = nil
}

func (m *KillFS) change(format string, args ...any) error {
	change := fmt.Sprintf(format, args...)
	m.mu.Lock()
	if m.begun = m.begun || m.Begin == nil || m.Begin(change); m.begun && !m.killed.Load() {
		m.counted = append(m.counted, change)
		if len(m.counted) == m.KillAt {
			m.killed.Store(true)
			if m.OnKill != nil {
				m.OnKill(change)
			}
		}
	}
	m.mu.Unlock()
	return m.checkAlive()
}

func (m *KillFS) checkAlive() error {
	if m.killed.Load() {
		return ErrKilled
	}
	return nil
}

// OpenFile implements vfs.FS.
func (m *KillFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	err := m.checkAlive()
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
	return &killFile{f, m}, nil
}

// Rename implements vfs.FS.
func (m *KillFS) Rename(from, to string) error {
	if err := m.change("rename %s %s", from, to); err != nil {
		return err
	}
	return m.FS.Rename(from, to)
}

// Remove implements vfs.FS.
func (m *KillFS) Remove(name string) error {
	if err := m.change("remove %s", name); err != nil {
		return err
	}
	return m.FS.Remove(name)
}

// RemoveAll implements vfs.FS, one removal after the other.
func (m *KillFS) RemoveAll(name string) error {
	if err := m.checkAlive(); err != nil {
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
func (m *KillFS) MkdirAll(name string, perm fs.FileMode) error {
	if _, err := m.FS.Stat(name); err == nil {
		return m.checkAlive()
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
func (m *KillFS) Mkdir(name string, perm fs.FileMode) error {
	if err := m.change("mkdir %s", name); err != nil {
		return err
	}
	return m.FS.Mkdir(name, perm)
}

// SyncDir implements vfs.FS.
func (m *KillFS) SyncDir(dir string) error { return m.change("sync %s", dir) }

// Boot is that of the underlying file system, which must be a vfs.SharedFS, as for Instance.
func (m *KillFS) Boot() (string, error) {
	if err := m.checkAlive(); err != nil {
		return "", err
	}
	if fs, ok := m.FS.(vfs.SharedFS); ok {
		return fs.Boot()
	}
	return "", errors.ErrUnsupported
}

// Instance names the file system of a file that was opened through m.
func (m *KillFS) Instance(f vfs.File) (string, error) {
	if err := m.checkAlive(); err != nil {
		return "", err
	}
	fs, shared := m.FS.(vfs.SharedFS)
	killed, ours := f.(*killFile)
	if !shared || !ours {
		return "", errors.ErrUnsupported
	}
	return fs.Instance(killed.File)
}

// ReadFile implements vfs.FS.
func (m *KillFS) ReadFile(name string) ([]byte, error) {
	if err := m.checkAlive(); err != nil {
		return nil, err
	}
	return m.FS.ReadFile(name)
}

// WriteFileAtomic implements vfs.FS, step by step.
func (m *KillFS) WriteFileAtomic(name string, data []byte, perm fs.FileMode) error {
	return vfs.WriteAtomic(m, name, data, perm)
}

type killFile struct {
	vfs.File
	m *KillFS
}

func (f *killFile) Close() error {
	f.m.mu.Lock()
	open := f.m.open[f.File]
	delete(f.m.open, f.File)
	f.m.mu.Unlock()
	if !open { // closed by CloseFiles
		return nil
	}
	return f.File.Close()
}

func (f *killFile) Preadv(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.m.checkAlive(); err != nil {
		return 0, err
	}
	return f.File.Preadv(iov, off)
}

func (f *killFile) PreadvNowait(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.m.checkAlive(); err != nil {
		return 0, err
	}
	return f.File.PreadvNowait(iov, off)
}

// AsyncFD and Map must not bypass the methods.
func (f *killFile) AsyncFD([]vfs.Iovec, int64) int { return -1 }

func (f *killFile) Map(int64) (*pagecache.Mapping, error) { return nil, pagecache.ErrNotMappable }

func (f *killFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.m.checkAlive(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *killFile) Pwritev(iov []vfs.Iovec, off int64) (int, error) {
	if err := f.m.change("write %s at %d", f.Name(), off); err != nil {
		return 0, err
	}
	return f.File.Pwritev(iov, off)
}

func (f *killFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.m.change("write %s at %d", f.Name(), off); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *killFile) PunchHole(off, n int64) error {
	if err := f.m.change("punch %s at %d", f.Name(), off); err != nil {
		return err
	}
	return f.File.PunchHole(off, n)
}

func (f *killFile) Datasync() error { return f.m.change("sync %s", f.Name()) }

func (f *killFile) Truncate(n int64) error {
	if err := f.m.change("truncate %s to %d", f.Name(), n); err != nil {
		return err
	}
	return f.File.Truncate(n)
}
