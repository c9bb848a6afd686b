package faultfs

import (
	"maps"
	"slices"
)

const (
	// SectorSize is the unit of torn writes, in bytes.
	SectorSize = 512
	pageSize   = 4096 // unit of storage and of holes
)

// inode is the number of a file or directory. 0 is none, 1 the root directory.
type inode int

const root inode = 1

// tree is the content of a file system: what processes see, what is on the device, or what a power
// cut has left. Trees share nodes and pages, and copy them before a change.
type tree struct {
	owner *token
	nodes []*node // by inode; nil: none
}

// token identifies a tree: the owner of a node or page may change it.
type token struct{ _ byte }

type node struct {
	owner   *token
	entries map[string]inode // of a directory; nil: a file
	pages   []*page          // nil: a hole; may be fewer than size needs
	size    int64            // bytes
	mtime   int64            // nanoseconds
}

type page struct {
	owner *token
	data  [pageSize]byte
}

func newTree() *tree {
	t := &tree{owner: new(token)}
	t.nodes = []*node{nil, {owner: t.owner, entries: map[string]inode{}}}
	return t
}

// clone copies one pointer per node.
func (t *tree) clone() *tree {
	t.owner = new(token) // our nodes are shared from now on
	return &tree{owner: new(token), nodes: slices.Clone(t.nodes)}
}

func (t *tree) node(id inode) *node {
	if int(id) >= len(t.nodes) {
		return nil
	}
	return t.nodes[id]
}

// make adds an empty file or directory without a name.
func (t *tree) make(id inode, dir bool) {
	for len(t.nodes) <= int(id) {
		t.nodes = append(t.nodes, nil)
	}
	n := &node{owner: t.owner}
	if dir {
		n.entries = map[string]inode{}
	}
	t.nodes[id] = n
}

// writable returns a node that may be changed.
func (t *tree) writable(id inode) *node {
	n := t.nodes[id]
	if n.owner == t.owner {
		return n
	}
	c := *n
	c.owner, c.pages, c.entries = t.owner, slices.Clone(n.pages), maps.Clone(n.entries)
	t.nodes[id] = &c
	return &c
}

// writablePage returns a page of n, a writable node of t, that may be changed.
func (t *tree) writablePage(n *node, i int64) *page {
	for int64(len(n.pages)) <= i {
		n.pages = append(n.pages, nil)
	}
	switch p := n.pages[i]; {
	case p == nil:
		n.pages[i] = &page{owner: t.owner}
	case p.owner != t.owner:
		n.pages[i] = &page{owner: t.owner, data: p.data}
	}
	return n.pages[i]
}

// link binds a name to id, or removes it (0).
func (t *tree) link(dir inode, name string, id inode) {
	n := t.writable(dir)
	if id == 0 {
		delete(n.entries, name)
		return
	}
	n.entries[name] = id
}

// write writes p at off. The file grows if grow is set; otherwise bytes beyond its end are ignored.
func (t *tree) write(id inode, off int64, p []byte, grow bool) {
	n := t.writable(id)
	if grow {
		n.size = max(n.size, off+int64(len(p)))
	} else {
		p = p[:max(0, min(int64(len(p)), n.size-off))]
	}
	for len(p) > 0 {
		k := copy(t.writablePage(n, off/pageSize).data[off%pageSize:], p)
		p, off = p[k:], off+int64(k)
	}
}

// zero makes a range read as zeros, without changing the size.
func (t *tree) zero(id inode, off, length int64) {
	n := t.writable(id)
	for end := min(off+length, int64(len(n.pages))*pageSize); off < end; {
		i, from := off/pageSize, off%pageSize
		k := min(pageSize-from, end-off)
		switch {
		case n.pages[i] == nil:
		case k == pageSize:
			n.pages[i] = nil
		default:
			clear(t.writablePage(n, i).data[from : from+k])
		}
		off += k
	}
}

func (t *tree) resize(id inode, size int64) {
	n := t.writable(id)
	if size < n.size {
		t.zero(id, size, n.size-size)
	}
	n.size = size
}

// read fills p from off with bytes before the end of the file and returns their number.
func (n *node) read(p []byte, off int64) int {
	p = p[:max(0, min(int64(len(p)), n.size-off))]
	for done := 0; done < len(p); {
		at := off + int64(done)
		i, from := at/pageSize, at%pageSize
		k := min(int64(len(p)-done), pageSize-from)
		if i < int64(len(n.pages)) && n.pages[i] != nil {
			copy(p[done:int64(done)+k], n.pages[i].data[from:])
		} else {
			clear(p[done : int64(done)+k])
		}
		done += int(k)
	}
	return len(p)
}

// needsSpace reports whether a write needs pages that the file does not have.
func (n *node) needsSpace(off, length int64) bool {
	if off+length > n.size {
		return true
	}
	for i := off / pageSize; i*pageSize < off+length; i++ {
		if i >= int64(len(n.pages)) || n.pages[i] == nil {
			return true
		}
	}
	return false
}

// graft replaces the directory dir of this tree by that of another one, with its inodes: both trees
// have the same numbers for the same files.
func (t *tree) graft(from *tree, dir string) {
	t.link(root, dir, 0)
	id := from.node(root).entries[dir]
	if id == 0 {
		return
	}
	t.link(root, dir, id)
	for todo := []inode{id}; len(todo) > 0; todo = todo[1:] {
		n := from.node(todo[0])
		for len(t.nodes) <= int(todo[0]) {
			t.nodes = append(t.nodes, nil)
		}
		t.nodes[todo[0]] = n
		for _, child := range n.entries {
			todo = append(todo, child)
		}
	}
}

// data returns the first range of pages at or after off that are no holes.
func (n *node) data(off int64) (start, end int64, ok bool) {
	i := off / pageSize
	for i < int64(len(n.pages)) && n.pages[i] == nil {
		i++
	}
	start = max(off, i*pageSize)
	if i >= int64(len(n.pages)) || start >= n.size {
		return 0, 0, false
	}
	for i < int64(len(n.pages)) && n.pages[i] != nil {
		i++
	}
	return start, min(i*pageSize, n.size), true
}
