package faultfs

import (
	"fmt"
	"sync/atomic"

	"cowblk/cow/vfs"
)

// Mapped memory is of the machine while it runs, so a process that dies leaves it
// to the next one; after a cut it is gone. What a mapping's file has on the device
// is nobody's business: the kernel writes such pages back whenever it likes, so a
// mapping of a file that this run of the machine has not reserved shows ones.

var (
	_ vfs.Survivor   = (*Process)(nil)
	_ vfs.SharedFile = (*file)(nil)
)

// Boot implements vfs.Survivor.
func (p *Process) Boot() (string, error) { return fmt.Sprintf("run %d", p.m.boots), nil }

// Names implements vfs.Survivor.
func (p *Process) Names(name string, id vfs.Identity) (own bool, err error) {
	err = p.change(Call{Op: "stat", Name: name}, func() error {
		found, err := p.m.walk("stat", name)
		own = err == nil && uint64(found) == id.Inode
		return err
	})
	return own, err
}

// Reserve implements vfs.SharedFile, as two changes of the file's length.
func (f *file) Reserve(n int64) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := f.Truncate(n); err != nil {
		return err
	}
	f.p.m.mu.Lock()
	defer f.p.m.mu.Unlock()
	f.p.m.shared[f.id] = make([]uint64, n/8)
	return nil
}

// MapShared implements vfs.SharedFile. Asks nobody.
func (f *file) MapShared(off int64, n uint64, _ bool) (*vfs.Shared, error) {
	if f.p.dead.Load() {
		return nil, ErrDead
	}
	m := f.p.m
	m.mu.Lock()
	defer m.mu.Unlock()
	words := m.shared[f.id]
	if words == nil {
		words = make([]uint64, m.tree.node(f.id).size/8)
		for i := range words {
			words[i] = ^uint64(0)
		}
		m.shared[f.id] = words
	}
	first := uint64(off / 8)
	if uint64(len(words)) < first+n {
		return nil, fmt.Errorf("map %s %d+%d: beyond its end", f.name, off, n*8)
	}
	return vfs.NewShared(words[first:first+n:first+n], func() error { return nil }), nil
}

// sharedNow is a copy of what is mapped.
func (m *Machine) sharedNow() map[inode][]uint64 {
	out := make(map[inode][]uint64, len(m.shared))
	for id, words := range m.shared {
		c := make([]uint64, len(words))
		for i := range words {
			c[i] = atomic.LoadUint64(&words[i])
		}
		out[id] = c
	}
	return out
}
