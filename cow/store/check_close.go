package store

import (
	"fmt"
	"slices"

	"cowblk/cow/finding"
	"cowblk/cow/layer"
)

// closeUnclean handles what a dead process left unfinished on a disk: unsealed layers and a head
// that was not closed. A repair opens and closes the disk, as the next process to open it would.
func (c *checker) closeUnclean(k *Report, m *Manifest, head layer.Header) {
	var unsealed []*finding.Finding
	for i := range m.Sealed() {
		if p := c.layers[c.s.paths(&m.Layers[i]).Map].unsealed; p != nil && p.Status != finding.Repaired {
			unsealed = append(unsealed, p)
		}
	}
	k.Unclean = head.UUID == m.Head().UUID && head.State == layer.Head && !head.Clean
	if len(unsealed) == 0 && !k.Unclean {
		return
	}
	if c.o.Repair && !c.hasOtherProblems(k, unsealed) && c.openAndClose(k, m, unsealed) {
		if k.Unclean {
			k.addNote("it was not closed in order; its head is sound, and is closed now")
		}
		return
	}
	if k.Unclean {
		k.addNote("it was not closed in order, and holds what was last flushed, or later")
	}
}

// hasOtherProblems reports whether the disk has problems that opening it does not remove.
func (c *checker) hasOtherProblems(k *Report, unsealed []*finding.Finding) bool {
	wrong := k.Error != "" || c.inDoubt || slices.ContainsFunc(k.Problems, func(p *finding.Finding) bool {
		return p.Status != finding.Repaired && !p.Leftover && !slices.Contains(unsealed, p)
	})
	if wrong {
		for _, p := range unsealed {
			p.Status, p.Advice = finding.Left, "fix the other problems of the disk first"
		}
	}
	return wrong
}

// openAndClose opens and closes a disk whose lock is held. It marks the layers that this has
// sealed.
func (c *checker) openAndClose(k *Report, m *Manifest, unsealed []*finding.Finding) bool {
	disk, err := c.s.openStack(c.ctx, m, OpenOptions{})
	if err == nil {
		err = disk.Close()
	}
	if err != nil {
		k.addFailure(fmt.Errorf("it could not be opened and closed: %w", err))
		return false
	}
	for i := range m.Sealed() {
		path := c.s.paths(&m.Layers[i]).Map
		p := c.layers[path].unsealed
		if p == nil {
			continue
		}
		if h, err := layer.ReadHeader(c.s.fs, path); err == nil && h.State == layer.Sealed {
			p.Status, p.Advice = finding.Repaired, ""
			continue
		}
		p.Status, p.Advice = finding.Left, "another process reads it: stop that, then repair it again"
	}
	return true
}
