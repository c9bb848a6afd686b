package store

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// owners looks for bytes of files that two disks, or two parts of one, lie on. Manifests do not show that: a table may
// name one file by several names. Of some disks it is looked at only where one of them lies on files outside the store,
// for the store's own are nobody else's but by such a one.
func (c *checker) owners() {
	if len(c.o.Names) > 0 && !slices.ContainsFunc(c.report.Checked, func(k *Checked) bool {
		return k.Kind == KindDisk && c.manifests[k.Name] != nil && foreign(c.manifests[k.Name])
	}) {
		return
	}
	parts, err := c.s.imageParts()
	if err != nil {
		return // the images themselves are reported
	}
	type once struct {
		kind  partKind
		layer uuid.UUID
		path  string
	}
	seen := map[once]bool{}
	manifests := c.sortedManifests()
	if len(c.o.Names) > 0 {
		manifests, _ = c.s.Disks() // one that cannot be read is for the check of that disk
	}
	for _, k := range manifests {
		for _, p := range c.s.partsOf(k) {
			key := once{p.kind, p.layer, p.path}
			if p.layer != uuid.Nil && !p.head && seen[key] {
				continue // a layer that several disks share
			}
			seen[key] = true
			parts = append(parts, p)
		}
	}
	byInode := map[vfs.Inode][]*part{}
	told := map[[2]*part]bool{}
	for _, p := range parts {
		// What cannot be looked at is reported where the disk itself is.
		if err := c.s.locate(p); err != nil {
			continue
		}
		for _, e := range p.extents {
			for _, o := range byInode[e.Inode] {
				mine, other, ok := p.common(o)
				// One layer that two disks name is what shares looks at.
				same := p.kind == o.kind && p.layer != uuid.Nil && p.layer == o.layer
				if !ok || same || p.compatible(o) || told[[2]*part{p, o}] {
					continue
				}
				told[[2]*part{p, o}] = true
				c.twoOwners(o, other, p, mine)
			}
			byInode[e.Inode] = append(byInode[e.Inode], p)
		}
	}
}

// foreign reports whether a disk lies on files outside the store.
func foreign(m *Manifest) bool {
	return m.Base != nil && m.Base.Path != "" || slices.ContainsFunc(m.Layers, func(l Layer) bool { return !l.own() })
}

func (c *checker) sortedManifests() []*Manifest {
	var all []*Manifest
	for _, m := range c.manifests {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *Manifest) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

// twoOwners reports bytes that are both a and b to each of their disks that is being checked.
func (c *checker) twoOwners(a *part, pathOfA string, b *part, pathOfB string) {
	for _, k := range c.report.Checked {
		if k.Kind == KindStore {
			continue
		}
		if name := fmt.Sprintf("%s %q", k.Kind, k.Name); name != a.owner && name != b.owner {
			continue
		}
		k.Problems = append(k.Problems, &Problem{
			Object: string(a.kind), File: a.path, What: "owner of the file's bytes", Expected: a.owner + " alone",
			Found: fmt.Sprintf("the same bytes are %s%s", b, alsoKnown(a, pathOfA, b, pathOfB)), Status: StatusLeft,
			Advice: "what is written through one of them changes the other: use one of them, and compare what it holds with a backup; two processes cannot open both at a time",
		})
	}
}
