package store

import (
	"errors"
	"fmt"
	"sort"
	"strconv"

	"github.com/google/uuid"

	"cowblk/cow/shell"
)

// Node is one object of a store's tree: an image or base, the layers on it that disks share, and
// disks, each of which stands for its head. In JSON a tree is an array of nodes, each after its
// parent, so its size grows with the number of nodes and not with the depth.
type Node struct {
	ID     string `json:"id"`               // KIND:NAME, for a layer KIND:UUID, for zeros KIND; unique in the tree
	Parent string `json:"parent,omitempty"` // ID of the node below; absent: a root
	Kind   string `json:"kind"`

	Name      string    `json:"name,omitempty"`      // of an image, base or disk
	UUID      uuid.UUID `json:"uuid,omitzero"`       // of a layer, or of a disk's head
	Tag       string    `json:"tag,omitempty"`       // of a layer
	Size      int64     `json:"size,omitempty"`      // bytes
	Usage     *Usage    `json:"usage,omitempty"`     // of a layer, or of a disk's head
	Allocated int64     `json:"allocated,omitempty"` // of an image: bytes on the file system
	Users     int       `json:"users,omitempty"`     // number of disks on it
	Serving   *Serving  `json:"serving,omitempty"`   // who has the disk open
	Error     string    `json:"error,omitempty"`     // what is wrong with it

	Err       error    `json:"-"` // Error
	Unknown   bool     `json:"-"` // unknown whether a process has the disk open
	UserNames []string `json:"-"` // of Users: all for a root, the first for a layer
	Children  []*Node  `json:"-"`
}

// layerUsers limits the names in a layer's node: all names would make the tree grow with the square
// of its depth.
const layerUsers = 4

// Tree returns the roots: images, then bases in place, then zeros, each with the nodes on it. The
// error joins all read errors; the tree has what could be read. The error of a single node is in
// the node.
func (s *Store) Tree() ([]*Node, error) {
	images, imgErr := s.Images()
	disks, diskErr := s.Disks()
	t := tree{s: s, layers: map[layerPlace]*Node{}, ids: map[string]int{}}
	byBase := map[string]*Node{}
	for _, img := range images {
		n := t.node(nil, KindImage, img.Name)
		n.Name, n.Size, n.Allocated = img.Name, img.Size, s.allocated(s.ImageData(img.Name))
		byBase["image "+img.Name] = n
	}
	for _, m := range disks {
		n := byBase[baseKey(m.Base)]
		if n == nil {
			switch {
			case m.Base == nil:
				n = t.node(nil, KindZeros, "")
			case m.Base.Image != "":
				n = t.node(nil, KindImage, m.Base.Image)
				n.fail(refused(s.ImageData(m.Base.Image), "image "+m.Base.Image, "a file",
					"none", ""))
			default:
				n = t.node(nil, KindBase, m.Base.String())
			}
			n.Name = m.Base.String()
			if m.Base != nil {
				n.Size = m.Base.Size
			}
			byBase[baseKey(m.Base)] = n
		}
		t.addDisk(n, m)
	}
	order := map[string]int{KindImage: 0, KindBase: 1, KindZeros: 2}
	sort.SliceStable(t.roots, func(i, j int) bool {
		if a, b := order[t.roots[i].Kind], order[t.roots[j].Kind]; a != b {
			return a < b
		}
		return t.roots[i].Name < t.roots[j].Name
	})
	return t.roots, errors.Join(imgErr, diskErr)
}

// tree is a tree under construction.
type tree struct {
	s      *Store
	roots  []*Node
	layers map[layerPlace]*Node
	ids    map[string]int // number of nodes with this ID before it is made unique
}

// layerPlace is a layer and the node below it. Manifests that contradict each other get one node
// each.
type layerPlace struct {
	parent *Node
	id     uuid.UUID
}

// node adds a node above parent; nil: a root.
func (t *tree) node(parent *Node, kind, name string) *Node {
	n := &Node{ID: kind, Kind: kind}
	if name != "" {
		n.ID += ":" + name
	}
	t.ids[n.ID]++
	if count := t.ids[n.ID]; count > 1 {
		n.ID += "#" + strconv.Itoa(count)
	}
	if parent == nil {
		t.roots = append(t.roots, n)
	} else {
		n.Parent = parent.ID
		parent.Children = append(parent.Children, n)
	}
	return n
}

// addDisk adds a disk to the tree of its base. It shares existing layer nodes.
func (t *tree) addDisk(root *Node, m *Manifest) {
	n := root
	n.Users++
	n.UserNames = append(n.UserNames, m.Name)
	for i := range m.Sealed() {
		n = t.layer(n, &m.Layers[i])
		if n.Users++; n.Users <= layerUsers {
			n.UserNames = append(n.UserNames, m.Name)
		}
	}
	disk := t.node(n, KindDisk, m.Name)
	disk.Name, disk.UUID, disk.Size = m.Name, m.Head().UUID, m.Size
	t.s.setUsage(disk, m.Head())
	v, err := t.s.ServingError(m.Name)
	if disk.Serving = v; err != nil {
		disk.fail(err)
		disk.Unknown = true
	}
}

func (t *tree) layer(parent *Node, l *Layer) *Node {
	place := layerPlace{parent, l.UUID}
	n := t.layers[place]
	if n == nil {
		n = t.node(parent, KindLayer, l.UUID.String())
		n.UUID, n.Tag = l.UUID, l.Tag
		t.s.setUsage(n, l)
		t.layers[place] = n
	}
	return n
}

func (s *Store) setUsage(n *Node, l *Layer) {
	u, err := s.LayerUsage(l)
	if err != nil {
		n.fail(err)
		return
	}
	n.Usage = u
	if n.Kind == KindLayer {
		n.Size = u.Size
	}
}

func (n *Node) fail(err error) { n.Err, n.Error = err, err.Error() }

func baseKey(b *Base) string {
	switch {
	case b == nil:
		return ""
	case b.Image != "":
		return "image " + b.Image
	}
	return "path " + b.String()
}

// Flatten returns all nodes of trees, each after its parent.
func Flatten(roots []*Node) []*Node {
	all := []*Node{}
	var add func(*Node)
	add = func(n *Node) {
		all = append(all, n)
		for _, c := range n.Children {
			add(c)
		}
	}
	for _, r := range roots {
		add(r)
	}
	return all
}

// Find reduces a tree to an image or disk with the nodes below and above it. Error: ErrNotFound.
func (s *Store) Find(roots []*Node, name string) ([]*Node, error) {
	var found []*Node
	for _, r := range roots {
		if r.Kind == KindImage && r.Name == name {
			return []*Node{r}, nil
		}
		if p := r.prune(name); p != nil {
			found = append(found, p)
		}
	}
	if found == nil {
		for _, read := range []func() error{
			func() error { _, err := s.Disk(name); return err },
			func() error { _, err := s.Image(name); return err },
		} {
			if err := read(); err != nil && !errors.Is(err, ErrNotFound) {
				return nil, err // it exists but is unreadable
			}
		}
		return nil, fmt.Errorf("%q %w in store %s (%s shows what is there)", name, ErrNotFound,
			shell.Text(s.dir), s.command("list"))
	}
	return found, nil
}

// prune returns the part of the tree that leads to a disk, or nil.
func (n *Node) prune(disk string) *Node {
	if n.Kind == KindDisk {
		if n.Name == disk {
			return n
		}
		return nil
	}
	for _, c := range n.Children {
		if p := c.prune(disk); p != nil {
			pruned := *n
			pruned.Children = []*Node{p}
			return &pruned
		}
	}
	return nil
}
