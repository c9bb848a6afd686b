package store

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// overlaps finds file ranges that two disks, or two parts of one disk, use. Manifests do not show
// them: a table may name one file by several paths, and a file of the store may be a link. If only
// some disks are checked, their parts are compared with each other and with their images. Parts of
// the other disks are included if one of the checked disks uses files that another disk may use.
func (c *checker) overlaps() {
	manifests := c.sortedManifests()
	names := slices.Collect(maps.Keys(c.images))
	if len(c.o.Names) == 0 || slices.ContainsFunc(manifests, c.s.foreign) {
		var err error
		if names, err = c.s.names(imagesDir); err != nil {
			return // reported with the images
		}
		if len(c.o.Names) > 0 {
			manifests, _ = c.s.Disks() // an unreadable manifest is reported with its disk
		}
	}
	slices.Sort(names)
	parts := c.s.partsOfImages(names)
	type once struct {
		kind  partKind
		layer uuid.UUID
		path  string
	}
	seen := map[once]bool{}
	for _, k := range manifests {
		for _, p := range c.s.partsOf(k) {
			key := once{p.kind, p.layer, p.path}
			if p.layer != uuid.Nil && !p.head && seen[key] {
				continue // a layer that disks share
			}
			seen[key] = true
			parts = append(parts, p)
		}
	}
	byInode := map[vfs.Inode][]*part{}
	reported := map[[2]*part]bool{}
	for _, p := range parts {
		// Errors are reported with the disk.
		if err := c.s.locate(p); err != nil {
			continue
		}
		for _, e := range p.extents {
			for _, o := range byInode[e.Inode] {
				mine, other, ok := p.overlap(o)
				// duplicates reports a layer that two disks name.
				same := p.kind == o.kind && p.layer != uuid.Nil && p.layer == o.layer
				if !ok || same || p.compatible(o) || reported[[2]*part{p, o}] {
					continue
				}
				reported[[2]*part{p, o}] = true
				c.reportOverlap(o, other, p, mine)
			}
			byInode[e.Inode] = append(byInode[e.Inode], p)
		}
	}
}

// foreign reports whether a disk uses files outside the store, or files of the store that have
// another name.
func (s *Store) foreign(m *Manifest) bool {
	return m.Base != nil && m.Base.Path != "" || slices.ContainsFunc(m.Layers, func(l Layer) bool {
		return !l.inStore() || s.linked(l.Map) || s.linked(l.Data)
	})
}

// linked reports whether a file of the store has several names, or is reached by a symbolic link in
// the store. name is relative to the store.
func (s *Store) linked(name string) bool {
	for at := name; at != "."; at = filepath.Dir(at) {
		st, err := os.Lstat(s.path(at))
		if err != nil {
			return false // reported with the layer
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 && !st.IsDir() ||
			st.Mode()&fs.ModeSymlink != 0 {
			return true
		}
	}
	return false
}

func (c *checker) sortedManifests() []*Manifest {
	return slices.SortedFunc(maps.Values(c.manifests), func(a, b *Manifest) int {
		return strings.Compare(a.Name, b.Name)
	})
}

// reportOverlap reports bytes that belong to both a and b with each of their disks that is checked.
func (c *checker) reportOverlap(a *part, pathOfA string, b *part, pathOfB string) {
	for _, k := range c.report.Reports {
		if k.Kind == KindStore {
			continue
		}
		if name := fmt.Sprintf("%s %q", k.Kind, k.Name); name != a.owner && name != b.owner {
			continue
		}
		k.add(string(a.kind), refused(a.path, "owner of the file's bytes", a.owner+" alone",
			fmt.Sprintf("the same bytes are %s%s", b, sharedFileText(a, pathOfA, b, pathOfB)),
			"what is written through one of them changes the other: use one of them, and compare what it holds with a backup; two processes cannot open both at a time"))
	}
}
