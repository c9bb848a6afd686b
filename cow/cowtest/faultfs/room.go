package faultfs

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// The room on the machine's file system is counted in pages. A new name takes one, for its inode, and what is written
// into a hole or beyond the end of a file as many as that is; removing, punching and shortening give them back. What is in
// memory takes none. A machine has no limit at first, and nobody can ask for one; what a cut or a copy leaves has none.

// ErrFull is in the errors of calls that found no room. Processes see ENOSPC.
var ErrFull error = fullError{}

type fullError struct{}

func (fullError) Error() string { return unix.ENOSPC.Error() + " (no room on the machine)" }
func (fullError) Unwrap() error { return unix.ENOSPC }

// SetRoom says how many pages of 4 KiB are free from now on; negative: there is no limit.
func (m *Machine) SetRoom(pages int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room, m.roomLimited = pages, pages >= 0
}

// Room is how many pages are free; -1: there is no limit.
func (m *Machine) Room() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.roomLimited {
		return -1
	}
	return m.room
}

// Free implements vfs.RoomFS, where the room has a limit.
func (p *Process) Free(dir string) (free int64, err error) {
	err = p.change(Call{Op: "stat", Name: dir}, func() error {
		if !p.m.roomLimited {
			return &fs.PathError{Op: "statfs", Path: dir, Err: unix.ENOSYS}
		}
		free = p.m.room * pageSize
		return nil
	})
	return free, err
}

// takeRoom is called with each call that is about to happen.
func (m *Machine) takeRoom(c Call) error {
	if c.pages == 0 || inMemory(c.Name) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.roomLimited:
	case c.pages > m.room:
		return &fs.PathError{Op: c.Op, Path: c.Name, Err: ErrFull}
	default:
		m.room -= c.pages
	}
	return nil
}

// giveRoom runs f, which takes data or the name name of a file away, and counts what that gives back. The machine is
// locked.
func (m *Machine) giveRoom(name string, id inode, gone bool, f func()) {
	if !m.roomLimited || inMemory(name) {
		f()
		return
	}
	before := m.tree.node(id).allocated()
	f()
	if gone {
		m.room += before + 1
	} else {
		m.room += before - m.tree.node(id).allocated()
	}
}

// allocated is how many pages a file has.
func (n *node) allocated() (pages int64) {
	for _, p := range n.pages {
		if p != nil {
			pages++
		}
	}
	return pages
}

// missing is how many pages a write would take.
func (n *node) missing(off, length int64) (pages int64) {
	for i := off / pageSize; i*pageSize < off+length; i++ {
		if i >= int64(len(n.pages)) || n.pages[i] == nil {
			pages++
		}
	}
	return pages
}

// reserve gives a file of the file system pages that hold zeros: it is recorded as writes of them, so a cut may take
// them away.
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
