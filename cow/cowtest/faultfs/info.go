package faultfs

import (
	"io/fs"
	"slices"
	"time"
)

// info is the result of Stat.
type info struct {
	name  string
	size  int64
	mtime int64
	dir   bool
}

func infoOf(name string, n *node) info {
	return info{name: name, size: n.size, mtime: n.mtime, dir: n.entries != nil}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Unix(0, i.mtime) }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o755
	}
	return 0o600
}

func sortedNames(n *node) []string {
	names := make([]string, 0, len(n.entries))
	for name := range n.entries {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
