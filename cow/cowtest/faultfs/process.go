package faultfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// ErrDead is returned by every call of a killed process.
var ErrDead = errors.New("the process is dead")

var errNotDir = error(unix.ENOTDIR)

// Call is one call of a process, as a Hook sees it.
type Call struct {
	// Op is open, create, read, write, punch, truncate, sync, sync directory, mkdir, rename,
	// remove, list, stat, set time, next data or drop cache; on a SharedFS also boot, instance,
	// evicted, resident, sync file system, open shared or reserve.
	Op   string
	Name string // of a rename: the new one
	From string // the old name of a rename on an FS
	Flag int    // of an open or create on an FS
	Off  int64  // bytes
	Len  int64  // bytes
	// Nowait: the read must not wait (File.PreadvNowait).
	Nowait bool
	// Space: the call needs space on the file system of Name, as far as is known when it is made: a
	// new name, a write beyond the end of a file or into a hole, memory for a page.
	Space bool
	pages int64 // pages of space that it takes
}

// String formats a call in one line.
func (c Call) String() string { return fmt.Sprintf("%s %s %d+%d", c.Op, c.Name, c.Off, c.Len) }

// IsSync reports whether the call makes changes certain and nothing else.
func (c Call) IsSync() bool { return c.Op == "sync" || c.Op == "sync directory" }

// Changes reports whether the call changes files or makes changes certain.
func (c Call) Changes() bool {
	switch c.Op {
	case "open", "read", "list", "stat", "next data":
		return false
	}
	return true
}

// Fault is the result of a Hook; the zero value lets the call happen.
type Fault struct {
	// Err is returned. Before that the first Done bytes of a write or punch happen; for a sync, see
	// Through.
	Err     error
	Done    int64
	Through Through
	// Short, unless 0, is the maximum of a vectored read or write, in bytes.
	Short int64
	// Cold makes a read without waiting return vfs.ErrWouldBlock. On a SharedFS it says that the
	// inode was evicted, or that pages are not resident.
	Cold bool
	// Skip, on an FS, makes a change or sync succeed without happening. On a SharedFS it says that
	// the inode was not evicted, or that all pages are resident.
	Skip bool
	// Corrupt, on an FS, inverts a bit of the first byte of a vectored read.
	Corrupt bool
}

// Hook is called before each call, on the caller's goroutine, concurrently. It may block.
type Hook func(Call) Fault

// Process is a process of the machine: a vfs.FS.
type Process struct {
	m    *Machine
	hook Hook // nil: none
	dead atomic.Bool
	// mapped are the files in memory that it has mapped for writing. m.mu guards it.
	mapped map[inode]bool
}

var _ vfs.FS = (*Process)(nil)

// Process starts a process. A nil hook lets everything happen.
func (m *Machine) Process(h Hook) *Process {
	return &Process{m: m, hook: h, mapped: map[inode]bool{}}
}

// Kill kills the process: all its calls return ErrDead from now on, and its locks are released.
func (p *Process) Kill() {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	// Last: what the process does in response to failing calls is lost too.
	defer p.dead.Store(true)
	for id := range p.mapped { // later stores of this process are lost
		p.m.shared[id] = copyWords(p.m.shared[id])
	}
	for _, holders := range p.m.locks {
		for f := range holders {
			if f.p == p {
				delete(holders, f)
			}
		}
	}
	for _, holders := range p.m.images {
		for f := range holders {
			if f.p == p {
				delete(holders, f)
			}
		}
	}
	for _, holders := range p.m.ranges {
		for f := range holders {
			if f.p == p {
				delete(holders, f)
			}
		}
	}
}

// ask passes a call to the hook.
func (p *Process) ask(c Call) (Fault, error) {
	if p.dead.Load() {
		return Fault{}, ErrDead
	}
	var f Fault
	if p.hook != nil {
		f = p.hook(c)
	}
	if p.dead.Load() { // killed while the hook blocked
		return Fault{}, ErrDead
	}
	if f.Err == nil {
		if err := p.m.takeSpace(c); err != nil {
			return Fault{}, err
		}
	}
	if f.Err != nil {
		f.Err = &fs.PathError{Op: c.Op, Path: c.Name, Err: f.Err}
	}
	return f, nil
}

// change passes a change of names to the hook, then makes it.
func (p *Process) change(c Call, f func() error) error {
	fault, err := p.ask(c)
	if err == nil {
		err = fault.Err
	}
	if err != nil {
		return err
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return f()
}

// OpenFile implements vfs.FS.
func (p *Process) OpenFile(name string, flag int, _ fs.FileMode) (vfs.File, error) {
	c := Call{Op: "open", Name: name}
	if flag&os.O_CREATE != 0 {
		if c.Op = "create"; !p.m.exists(name) {
			c.Space, c.pages = true, 1
		}
	}
	var f *file
	err := p.change(c, func() (err error) {
		f, err = p.open(name, flag)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (p *Process) open(name string, flag int) (*file, error) {
	m := p.m
	dir, base, err := m.parent("open", name)
	if err != nil {
		return nil, err
	}
	id := m.tree.node(dir).entries[base]
	switch {
	case id == 0 && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case id == 0:
		id = m.make(false)
		m.tree.link(dir, base, id)
		m.record(&Record{Kind: Create, Name: name, node: id, entries: []entry{{dir, base, id}}})
	case flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
	case m.tree.node(id).entries != nil:
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EISDIR}
	}
	f := &file{p: p, name: name, id: id}
	if flag&os.O_TRUNC != 0 && m.tree.node(id).size > 0 {
		f.truncate(0)
	}
	return f, nil
}

// Rename implements vfs.FS.
func (p *Process) Rename(from, to string) error {
	return p.change(Call{Op: "rename", Name: to}, func() error {
		m := p.m
		id, err := m.walk("rename", from)
		if err != nil {
			return err
		}
		fromDir, fromBase, _ := m.parent("rename", from)
		toDir, toBase, err := m.parent("rename", to)
		if err != nil {
			return err
		}
		if old := m.tree.node(toDir).entries[toBase]; old != 0 {
			n := m.tree.node(old)
			if len(n.entries) > 0 {
				return &fs.PathError{Op: "rename", Path: to, Err: unix.ENOTEMPTY}
			}
			m.freeSpace(to, old, true, func() {})
		}
		m.tree.link(fromDir, fromBase, 0)
		m.tree.link(toDir, toBase, id)
		m.record(&Record{Kind: Rename, Name: from + " to " + to,
			entries: []entry{{fromDir, fromBase, 0}, {toDir, toBase, id}}})
		return nil
	})
}

// Remove implements vfs.FS.
func (p *Process) Remove(name string) error {
	return p.change(Call{Op: "remove", Name: name}, func() error {
		m := p.m
		id, err := m.walk("remove", name)
		if err != nil {
			return err
		}
		if len(m.tree.node(id).entries) > 0 {
			return &fs.PathError{Op: "remove", Path: name, Err: unix.ENOTEMPTY}
		}
		dir, base, _ := m.parent("remove", name)
		m.freeSpace(name, id, true, func() { m.tree.link(dir, base, 0) })
		m.record(&Record{Kind: Remove, Name: name, entries: []entry{{dir, base, 0}}})
		return nil
	})
}

// RemoveAll implements vfs.FS, one removal after the other.
func (p *Process) RemoveAll(name string) error { return removeAll(p, name) }

// MkdirAll implements vfs.FS in the steps of vfs.OS.
func (p *Process) MkdirAll(name string, perm fs.FileMode) error { return mkdirAll(p, name, perm) }

// Mkdir implements vfs.FS.
func (p *Process) Mkdir(name string, _ fs.FileMode) error { return p.mkdir(name) }

// SomeNames implements vfs.FS.
func (p *Process) SomeNames(dir string, n int) (names []string, err error) {
	entries, err := p.ReadDir(dir)
	for i, e := range entries {
		if i == n {
			break
		}
		names = append(names, e.Name())
	}
	return names, err
}

func (p *Process) mkdir(name string) error {
	return p.change(Call{Op: "mkdir", Name: name, Space: true, pages: 1}, func() error {
		m := p.m
		dir, base, err := m.parent("mkdir", name)
		if err != nil {
			return err
		}
		if m.tree.node(dir).entries[base] != 0 {
			return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
		}
		id := m.make(true)
		m.tree.link(dir, base, id)
		m.record(&Record{Kind: Create, Name: name, node: id, dir: true,
			entries: []entry{{dir, base, id}}})
		return nil
	})
}

// SyncDir implements vfs.FS.
func (p *Process) SyncDir(name string) error {
	fault, err := p.ask(Call{Op: "sync directory", Name: name})
	if err != nil {
		return err
	}
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	id, err := p.m.walk("sync directory", name)
	if err != nil {
		return err
	}
	p.m.record(&Record{Kind: SyncDir, Name: name, node: id, Failed: fault.Err != nil})
	return fault.Err
}

// ReadFile implements vfs.FS.
func (p *Process) ReadFile(name string) ([]byte, error) {
	f, err := p.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	content := make([]byte, size)
	_, err = f.ReadAt(content, 0)
	return content, err
}

// WriteFileAtomic implements vfs.FS, step by step.
func (p *Process) WriteFileAtomic(name string, data []byte, perm fs.FileMode) error {
	return vfs.WriteAtomic(p, name, data, perm)
}

// Stat implements vfs.FS.
func (p *Process) Stat(name string) (st fs.FileInfo, err error) {
	err = p.change(Call{Op: "stat", Name: name}, func() error {
		id, err := p.m.walk("stat", name)
		if err == nil {
			st = infoOf(path.Base(name), p.m.tree.node(id))
		}
		return err
	})
	return st, err
}

// Versions implements vfs.FS, file by file.
func (p *Process) Versions(names []string) []*vfs.Version { return vfs.VersionsByStat(p, names) }

// ReadDir implements vfs.FS.
func (p *Process) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = p.change(Call{Op: "list", Name: name}, func() error {
		id, err := p.m.walk("list", name)
		if err != nil {
			return err
		}
		n := p.m.tree.node(id)
		if n.entries == nil {
			return &fs.PathError{Op: "list", Path: name, Err: errNotDir}
		}
		for _, e := range sortedNames(n) {
			list = append(list, fs.FileInfoToDirEntry(infoOf(e, p.m.tree.node(n.entries[e]))))
		}
		return nil
	})
	return list, err
}
