package crash

import (
	"maps"
	"slices"
	"strings"
)

// names returns the disks of a step.
func names(list string) []string { return strings.Split(list, ",") }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// The functions below apply operations to the world. They return false if the operation is
// impossible in it.

func (w *world) create(s Step) bool {
	d := &disk{}
	var below *content
	if name, t, isTag := strings.Cut(s.Arg, "@"); isTag {
		from := w.disks[name]
		if from == nil || from.tagged(t) == nil {
			return false
		}
		below, d.image = from.tagged(t).content, from.image
		for _, x := range from.tags {
			d.tags = append(d.tags, x)
			if x.name == t {
				break
			}
		}
	} else if s.Arg == baseFile {
		below = newImage(baseSize, baseContent)
	} else if s.Arg != "" {
		if below = w.images[s.Arg]; below == nil {
			return false
		}
		d.image = s.Arg
	}
	d.content = newContent(s.Size, below)
	if w.disks[s.Name] != nil {
		return false
	}
	w.disks[s.Name] = d
	return true
}

// promote gives the disks a tag, which has the content of the disk until the swap.
func (w *world) promote(s Step) bool {
	for _, name := range names(s.Name) {
		d := w.disks[name]
		if d == nil || d.tagged(s.Arg) != nil {
			return false
		}
		d.tags = append(d.tags, tag{s.Arg, d.content})
	}
	return true
}

func (w *world) rollback(s Step) bool {
	d := w.disks[s.Name]
	if d == nil {
		return false
	}
	for i, t := range d.tags {
		if t.name == s.Arg {
			d.tags = d.tags[:i+1]
			d.content = newContent(d.content.size, t.content) // the disk may have grown since
			return true
		}
	}
	return false
}

func (w *world) remove(s Step) bool {
	if w.disks[s.Name] == nil && (w.images[s.Name] == nil || w.onImage(s.Name)) {
		return false
	}
	delete(w.disks, s.Name)
	delete(w.images, s.Name)
	return true
}
