package store

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sort"

	"encoding/binary"

	"github.com/google/uuid"

	"cowblk/cow/layer"
)

// Usage is what one layer holds.
type Usage struct {
	State  string `json:"state"`  // "head" or "sealed"
	Size   int64  `json:"size"`   // bytes, of the disk when the layer was made
	Blocks uint64 `json:"blocks"` // that the layer owns
	Owned  int64  `json:"owned"`  // the same in bytes
	// Allocated is the space that the layer takes in the store, in bytes on the file system: less than Owned where
	// blocks are zeros. Of a layer that is not the store's it is that of the checksums of its data.
	Allocated int64 `json:"allocated"`
	// Flushed: the layer is being written, or was not closed in order; Blocks counts what is durable.
	Flushed bool `json:"flushed,omitempty"`
}

// LayerUsage reads what a layer holds, without opening it: also while a process writes it. Errors: ErrRefused if its
// header cannot be read.
func (s *Store) LayerUsage(l *Layer) (*Usage, error) {
	p := s.paths(l)
	h, err := layer.ReadHeader(s.fs, p.Map)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Mismatch{File: p.Map, What: "map of layer " + l.UUID.String(), Expected: "a file", Found: "none"}
	}
	if err != nil {
		return nil, classify(err)
	}
	u := &Usage{State: h.State.String(), Size: h.Size, Blocks: h.Owned}
	if !h.Clean {
		if u.Blocks, err = s.countBlocks(p.Map, &h); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Map, err)
		}
		u.Flushed = true
	}
	// The last block may be partial; counting it whole would say more than the disk's size.
	u.Owned = min(int64(u.Blocks)*int64(h.BlockSize), h.Size)
	u.Allocated = s.takes(l)
	return u, nil
}

// countBlocks counts the bits of a map that somebody may be writing. Each bit is durable or will be in a moment.
func (s *Store) countBlocks(path string, h *layer.Header) (uint64, error) {
	f, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var blocks uint64
	buf := make([]byte, chunkSize)
	size := h.MapSize()
	for off := int64(layer.MapOffset); off < size; {
		start, end, err := f.NextData(off)
		if errors.Is(err, io.EOF) || err == nil && start >= size {
			break
		}
		if err != nil {
			return 0, err
		}
		for off = start; off < min(end, size); {
			p := buf[:min(min(end, size)-off, chunkSize)]
			if _, err := f.ReadAt(p, off); err != nil {
				return 0, err
			}
			off += int64(len(p))
			for ; len(p) >= 8; p = p[8:] {
				blocks += uint64(bits.OnesCount64(binary.LittleEndian.Uint64(p)))
			}
		}
	}
	return blocks, nil
}

// Kinds of a Node.
const (
	KindImage = "image"
	KindBase  = "base" // a file or device used in place
	KindZeros = "zeros"
	KindLayer = "layer"
	KindDisk  = "disk"
)

// Node is one thing in the tree of a store: an image or base, on it layers that disks share, and disks, each of which
// stands for its head.
type Node struct {
	Kind      string    `json:"kind"`
	Name      string    `json:"name,omitempty"`      // of an image, base or disk
	UUID      uuid.UUID `json:"uuid,omitzero"`       // of a layer, or of a disk's head
	Tag       string    `json:"tag,omitempty"`       // of a layer
	Size      int64     `json:"size,omitempty"`      // bytes
	Usage     *Usage    `json:"usage,omitempty"`     // of a layer, or of a disk's head
	Allocated int64     `json:"allocated,omitempty"` // of an image: bytes on the file system
	Users     []string  `json:"users,omitempty"`     // disks that lie on it
	Serving   *Serving  `json:"serving,omitempty"`   // who has the disk open
	Error     string    `json:"error,omitempty"`     // what is wrong with it
	Unread    bool      `json:"unread,omitempty"`    // Error says why it could not be read: nothing need be wrong with it
	Children  []*Node   `json:"children,omitempty"`
}

// Tree returns the roots: images, then bases in place, then zeros, each with what lies on it. The error joins what
// could not be read; the rest is there nevertheless.
func (s *Store) Tree() ([]*Node, error) {
	images, imgErr := s.Images()
	disks, diskErr := s.Disks()
	errs := []error{imgErr, diskErr}
	var roots []*Node
	byBase := map[string]*Node{}
	for _, img := range images {
		n := &Node{Kind: KindImage, Name: img.Name, Size: img.Size, Allocated: s.allocated(s.ImageData(img.Name))}
		roots = append(roots, n)
		byBase["image "+img.Name] = n
	}
	for _, m := range disks {
		n := byBase[baseKey(m.Base)]
		if n == nil {
			n = &Node{Kind: KindZeros, Name: m.Base.String()}
			switch {
			case m.Base == nil:
			case m.Base.Image != "":
				n.Kind, n.Size, n.Error = KindImage, m.Base.Size, "the image is missing"
			default:
				n.Kind, n.Size = KindBase, m.Base.Size
			}
			byBase[baseKey(m.Base)] = n
			roots = append(roots, n)
		}
		errs = append(errs, s.plant(n, m)...)
	}
	order := map[string]int{KindImage: 0, KindBase: 1, KindZeros: 2}
	sort.SliceStable(roots, func(i, j int) bool {
		if a, b := order[roots[i].Kind], order[roots[j].Kind]; a != b {
			return a < b
		}
		return roots[i].Name < roots[j].Name
	})
	return roots, errors.Join(errs...)
}

func baseKey(b *Base) string {
	switch {
	case b == nil:
		return ""
	case b.Image != "":
		return "image " + b.Image
	}
	return "path " + b.String()
}

// plant adds a disk to the tree of its base, sharing the layers that are there already. It returns what could not be read:
// no permission, input or output errors. Damage is no such error, and stands in the tree alone.
func (s *Store) plant(root *Node, m *Manifest) (errs []error) {
	n := root
	n.Users = append(n.Users, m.Name)
	for i := range m.Sealed() {
		l := &m.Layers[i]
		n, errs = s.child(n, l, errs)
		n.Users = append(n.Users, m.Name)
	}
	disk := &Node{Kind: KindDisk, Name: m.Name, UUID: m.Head().UUID, Size: m.Size}
	errs = s.measure(disk, m.Head(), errs)
	v, err := s.ServingError(m.Name)
	if disk.Serving = v; err != nil {
		disk.Error, disk.Unread = err.Error(), true
		errs = append(errs, err)
	}
	n.Children = append(n.Children, disk)
	return errs
}

func (s *Store) child(n *Node, l *Layer, errs []error) (*Node, []error) {
	for _, c := range n.Children {
		if c.Kind == KindLayer && c.UUID == l.UUID {
			return c, errs
		}
	}
	c := &Node{Kind: KindLayer, UUID: l.UUID, Tag: l.Tag}
	errs = s.measure(c, l, errs)
	n.Children = append(n.Children, c)
	return c, errs
}

// measure appends to errs what could not be read.
func (s *Store) measure(n *Node, l *Layer, errs []error) []error {
	u, err := s.LayerUsage(l)
	if err != nil {
		n.Error = err.Error()
		if n.Unread = !errors.Is(err, ErrRefused); n.Unread {
			errs = append(errs, err)
		}
		return errs
	}
	n.Usage = u
	if n.Kind == KindLayer {
		n.Size = u.Size
	}
	return errs
}

// Find cuts a tree down to the image or disk called name, with what leads to it and what lies on it; ErrNotFound.
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
		return nil, fmt.Errorf("%q %w in store %s (cowblk list shows what is there)", name, ErrNotFound, s.dir)
	}
	return found, nil
}

// prune is the part of the tree that leads to a disk, or nil.
func (n *Node) prune(disk string) *Node {
	if n.Kind == KindDisk {
		if n.Name == disk {
			return n
		}
		return nil
	}
	for _, c := range n.Children {
		if p := c.prune(disk); p != nil {
			cut := *n
			cut.Children = []*Node{p}
			return &cut
		}
	}
	return nil
}
