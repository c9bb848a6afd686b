package faultfs

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"

	"cowblk/cow/vfs"
)

// Machine is a computer with one file system. Its methods may be called concurrently.
type Machine struct {
	mu     sync.Mutex
	tree   *tree // as processes see it
	next   inode
	clock  int64 // nanoseconds; every change advances it by one
	tape   *Tape // nil: not recording
	device *Device
	locks  map[inode]map[*file]bool // exclusive?
	ranges map[inode]map[*file]rangeLock
	images map[inode]map[*file]vfs.ImageAccess
	boots  int   // runs of the machine, this one included
	mounts int   // of its file system, this one included
	first  inode // first inode number that was free when this run of the machine began
	// freePages is the number of free pages, if spaceLimited.
	freePages    int64
	spaceLimited bool
	shared       map[inode][]uint64 // content of files in memory, as processes see it
}

// rangeLock is a lock on bytes off to end of a file.
type rangeLock struct {
	off, end  int64
	exclusive bool
}

// New returns a machine with an empty root directory.
func New() *Machine { return newMachine(newTree(), 1) }

func newMachine(t *tree, boots int) *Machine {
	return &Machine{tree: t, next: inode(len(t.nodes)), clock: 1_000_000_000,
		locks: map[inode]map[*file]bool{}, ranges: map[inode]map[*file]rangeLock{},
		images: map[inode]map[*file]vfs.ImageAccess{},
		boots:  boots, mounts: 1, first: inode(len(t.nodes)), shared: map[inode][]uint64{}}
}

// Record begins a new tape: the present content is certain, as if the machine had been idle for
// long.
func (m *Machine) Record() *Tape {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tape = &Tape{start: m.tree.clone(), boots: m.boots}
	m.device = m.tape.Play()
	return m.tape
}

// Clone returns another machine with the same content, all of it certain.
func (m *Machine) Clone() *Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newMachine(m.tree.clone(), m.boots)
	c.clock, c.shared, c.mounts, c.first = m.clock, m.sharedNow(), m.mounts, m.first
	return c
}

// Mark records a note of the test.
func (m *Machine) Mark(note any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record(&Record{Kind: Mark, Note: note})
}

// Len returns the number of records on the tape.
func (m *Machine) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tape == nil {
		return 0
	}
	return len(m.tape.Records)
}

// Cut returns the machine after a power cut of this recording machine at this moment; f makes the
// choice.
func (m *Machine) Cut(f func(*Device) Choice) *Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.device.Image(f(m.device))
}

// record puts a change of the tree on the tape.
func (m *Machine) record(r *Record) {
	if r.isName() {
		r.mtime = m.now() / tick * tick
		for _, e := range r.entries {
			m.tree.writable(e.dir).mtime = r.mtime
		}
	}
	if m.tape == nil {
		return
	}
	m.tape.Records = append(m.tape.Records, r)
	m.device.Apply(r)
}

// tick is the resolution, in nanoseconds, of a directory's time when its names change: two changes
// in quick succession leave the same time, as in Linux.
const tick = 1 << 20

func (m *Machine) now() int64 {
	m.clock++
	return m.clock
}

// Put makes a file with the given content, and its directories, all certain. Call it before Record
// only.
func (m *Machine) Put(name string, content []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir := root
	parts := split(name)
	for _, p := range parts[:len(parts)-1] {
		id := m.tree.node(dir).entries[p]
		if id == 0 {
			id = m.make(true)
			m.tree.link(dir, p, id)
		}
		dir = id
	}
	id := m.make(false)
	m.tree.link(dir, parts[len(parts)-1], id)
	m.tree.write(id, 0, content, true)
	m.tree.writable(id).mtime = m.now()
}

func (m *Machine) make(dir bool) inode {
	id := m.next
	m.next++
	m.tree.make(id, dir)
	m.tree.nodes[id].mtime = m.now()
	return id
}

// Content returns the content of a file.
func (m *Machine) Content(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, err := m.walk("read", name)
	if err != nil {
		return nil, err
	}
	n := m.tree.node(id)
	p := make([]byte, n.size)
	n.read(p, 0)
	return p, nil
}

func (m *Machine) exists(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.walk("stat", name)
	return err == nil
}

// Flip inverts bit number bit of a file.
func (m *Machine) Flip(name string, bit int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, err := m.walk("flip", name)
	if err != nil {
		return err
	}
	var b [1]byte
	if m.tree.node(id).read(b[:], bit/8) == 0 {
		return fmt.Errorf("flip bit %d of %s: beyond its end", bit, name)
	}
	b[0] ^= 1 << (bit % 8)
	m.tree.write(id, bit/8, b[:], false)
	return nil
}

// Files returns the paths of all files below a directory, sorted.
func (m *Machine) Files(dir string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, err := m.walk("list", dir)
	if err != nil {
		return nil
	}
	var out []string
	m.list(id, dir, &out)
	return out
}

func (m *Machine) list(id inode, name string, out *[]string) {
	n := m.tree.node(id)
	if n.entries == nil {
		*out = append(*out, name)
		return
	}
	for _, e := range sortedNames(n) {
		m.list(n.entries[e], path.Join(name, e), out)
	}
}

func split(name string) []string {
	return strings.FieldsFunc(path.Clean(name), func(r rune) bool { return r == '/' })
}

// walk returns the inode of a path.
func (m *Machine) walk(op, name string) (inode, error) {
	id := root
	for _, p := range split(name) {
		n := m.tree.node(id)
		if n.entries == nil {
			return 0, &fs.PathError{Op: op, Path: name, Err: errNotDir}
		}
		if id = n.entries[p]; id == 0 {
			return 0, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return id, nil
}

// parent returns the directory of a path, and its last element.
func (m *Machine) parent(op, name string) (inode, string, error) {
	dir, err := m.walk(op, path.Dir(path.Clean(name)))
	if err != nil {
		return 0, "", &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	if m.tree.node(dir).entries == nil {
		return 0, "", &fs.PathError{Op: op, Path: name, Err: errNotDir}
	}
	return dir, path.Base(name), nil
}
