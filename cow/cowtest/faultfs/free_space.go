package faultfs

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// The free space of the machine's file system is counted in pages. A new name takes one, for its
// inode; data written into a hole or beyond the end of a file takes its pages. Removing, punching
// and shortening free them. Files in memory take none. A new machine has no limit, and Free fails
// then; a machine after a power cut, or a clone, has none.

// ErrFull is wrapped by the errors of calls that found no space. Processes get ENOSPC.
var ErrFull error = fullError{}

type fullError struct{}

func (fullError) Error() string { return unix.ENOSPC.Error() + " (no space on the machine)" }
func (fullError) Unwrap() error { return unix.ENOSPC }

// SetFreePages sets the number of free pages of 4 KiB; negative: no limit.
func (m *Machine) SetFreePages(pages int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.freePages, m.spaceLimited = pages, pages >= 0
}

// FreePages returns the number of free pages; -1: no limit.
func (m *Machine) FreePages() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.spaceLimited {
		return -1
	}
	return m.freePages
}

// Free implements vfs.SpaceFS, if the space is limited.
func (p *Process) Free(dir string) (free int64, err error) {
	err = p.change(Call{Op: "stat", Name: dir}, func() error {
		if !p.m.spaceLimited {
			return &fs.PathError{Op: "statfs", Path: dir, Err: unix.ENOSYS}
		}
		free = p.m.freePages * pageSize
		return nil
	})
	return free, err
}

// takeSpace takes the pages of a call that is about to happen.
func (m *Machine) takeSpace(c Call) error {
	if c.pages == 0 || inMemory(c.Name) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.spaceLimited:
	case c.pages > m.freePages:
		return &fs.PathError{Op: c.Op, Path: c.Name, Err: ErrFull}
	default:
		m.freePages -= c.pages
	}
	return nil
}

// freeSpace runs f, which removes data, or the name name, of a file, and frees its pages. The
// machine is locked.
func (m *Machine) freeSpace(name string, id inode, gone bool, f func()) {
	if !m.spaceLimited || inMemory(name) {
		f()
		return
	}
	pagesBefore := m.tree.node(id).allocated()
	f()
	if gone {
		m.freePages += pagesBefore + 1
	} else {
		m.freePages += pagesBefore - m.tree.node(id).allocated()
	}
}

// allocated returns the number of pages of a file.
func (n *node) allocated() (pages int64) {
	for _, p := range n.pages {
		if p != nil {
			pages++
		}
	}
	return pages
}

// missing returns the number of pages that a write would take.
func (n *node) missing(off, length int64) (pages int64) {
	for i := off / pageSize; i*pageSize < off+length; i++ {
		if i >= int64(len(n.pages)) || n.pages[i] == nil {
			pages++
		}
	}
	return pages
}

// reserve allocates pages of zeros for a file of the file system. They are recorded as writes, so
// that a power cut may lose them.
func (f *file) reserve(off, n int64) {
	for i := off / pageSize; i*pageSize < off+n; i++ {
		f.p.m.mu.Lock()
		missing := f.p.m.tree.node(f.id).missing(i*pageSize, pageSize)
		f.p.m.mu.Unlock()
		if missing > 0 {
			f.write(make([]byte, pageSize), i*pageSize)
		}
	}
}
