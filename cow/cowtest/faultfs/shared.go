package faultfs

import (
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"

	"cowblk/cow/vfs"
)

// Files below MemoryDir are in memory. What is stored in a mapping of one is the
// machine's while it runs, so a process that dies leaves it to the next one; after a
// cut it is gone: what is left of such a file then shows ones.

// MemoryDir is the directory that is a file system in memory.
const MemoryDir = "/run"

var (
	_ vfs.SharedFS   = (*Process)(nil)
	_ vfs.SharedFile = (*file)(nil)
)

// Boot implements vfs.SharedFS.
func (p *Process) Boot() (name string, err error) {
	err = p.change(Call{Op: "boot"}, func() error {
		name = fmt.Sprintf("run %d", p.m.boots)
		return nil
	})
	return name, err
}

// Instance implements vfs.SharedFS.
func (p *Process) Instance(f vfs.File) (name string, err error) {
	err = p.change(Call{Op: "instance", Name: f.Name()}, func() error {
		name = fmt.Sprintf("mount %d", p.m.mounts)
		return nil
	})
	return name, err
}

// Changed implements vfs.SharedFS.
func (p *Process) Changed(f vfs.File) (at int64, err error) {
	err = p.change(Call{Op: "changed", Name: f.Name()}, func() error {
		at = p.m.tree.node(f.(*file).id).mtime
		return nil
	})
	return at, err
}

// Evicted implements vfs.SharedFS: all files stay in memory.
func (p *Process) Evicted(vfs.File) (bool, error) { return false, nil }

// Resident implements vfs.SharedFS: see Evicted.
func (p *Process) Resident(vfs.File, int64, int64) (bool, error) { return true, nil }

// SyncFS implements vfs.SharedFS. It is for what was evicted.
func (p *Process) SyncFS(vfs.File) error { return nil }

// MakeSharedDir implements vfs.SharedFS.
func (p *Process) MakeSharedDir(dir string) error {
	if !inMemory(dir) {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: vfs.ErrNotInMemory}
	}
	return p.MkdirAll(dir, 0o700)
}

// OpenShared implements vfs.SharedFS.
func (p *Process) OpenShared(name string, flag int, perm fs.FileMode) (vfs.SharedFile, error) {
	if !inMemory(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: vfs.ErrNotInMemory}
	}
	f, err := p.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return f.(*file), nil
}

func inMemory(name string) bool { return strings.HasPrefix(name, MemoryDir+"/") }

// Reserve implements vfs.SharedFile.
func (f *file) Reserve(off, n int64) error {
	c := f.call("reserve", off, n)
	f.p.m.mu.Lock()
	c.Space, c.pages = true, f.p.m.tree.node(f.id).missing(off, n)
	f.p.m.mu.Unlock()
	fault, err := f.p.ask(c)
	if err == nil {
		err = fault.Err
	}
	if err == nil && !inMemory(f.name) {
		f.reserve(off, n)
	}
	return err
}

// MapShared implements vfs.SharedFile.
func (f *file) MapShared(n uint64, write bool) (*vfs.Shared, error) {
	fault, err := f.p.ask(f.call("map", 0, int64(n*8)))
	if err == nil {
		err = fault.Err
	}
	if err != nil {
		return nil, err
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	words := m.sharedWords(f.id)
	if uint64(len(words)) < n {
		return nil, fmt.Errorf("map %s 0+%d: beyond its end", f.name, n*8)
	}
	if write {
		f.p.mapped[f.id] = true
	}
	return vfs.NewShared(words[:n:n], func() error { return nil }), nil
}

// sharedWords is the content of a file in memory. The machine is locked.
func (m *Machine) sharedWords(id inode) []uint64 {
	words, size := m.shared[id], m.tree.node(id).size/8
	if words == nil && id < m.first {
		// It was there when this run of the machine began.
		words = make([]uint64, size)
		for i := range words {
			words[i] = ^uint64(0)
		}
	}
	if int64(len(words)) < size {
		words = append(words, make([]uint64, size-int64(len(words)))...)
	}
	m.shared[id] = words
	return words
}

// nextShared is NextData of a file in memory: every page may hold something.
func (f *file) nextShared(off int64) (start, end int64, err error) {
	size := f.p.m.tree.node(f.id).size
	if off >= size {
		return 0, 0, io.EOF
	}
	return off, size, nil
}

// sharedNow is a copy of what is mapped.
func (m *Machine) sharedNow() map[inode][]uint64 {
	out := make(map[inode][]uint64, len(m.shared))
	for id, words := range m.shared {
		out[id] = copyWords(words)
	}
	return out
}

func copyWords(words []uint64) []uint64 {
	c := make([]uint64, len(words))
	for i := range words {
		c[i] = atomic.LoadUint64(&words[i])
	}
	return c
}
