//go:build integration

package outage

import (
	"fmt"
	"slices"
	"strings"
)

// write is one write to a sector that no completed flush covers.
type write struct {
	version   version
	completed bool
}

// oracle knows what each sector of a disk may hold.
type oracle struct {
	disk    uint32
	stable  []version         // by sector: flushed
	pending map[int64][]write // by sector: since then, oldest first
	next    version
}

func newOracle(disk uint32, sectors int64) *oracle {
	return &oracle{disk: disk, stable: make([]version, sectors), pending: map[int64][]write{}, next: 1}
}

// clone is the oracle of a backup.
func (o *oracle) clone() *oracle {
	c := *o
	c.stable = slices.Clone(o.stable)
	c.pending = map[int64][]write{}
	for s, ws := range o.pending {
		c.pending[s] = slices.Clone(ws)
	}
	return &c
}

// wrote notes a write of n sectors, completed or not.
func (o *oracle) wrote(first, n int64, v version, completed bool) {
	for s := first; s < first+n; s++ {
		o.pending[s] = append(o.pending[s], write{v, completed})
	}
}

// flushed notes a flush that has succeeded; nothing was under way meanwhile.
func (o *oracle) flushed() {
	for s, ws := range o.pending {
		i := len(ws) - 1
		for i >= 0 && !ws[i].completed {
			i--
		}
		if i >= 0 {
			o.stable[s] = ws[i].version
			ws = ws[i+1:]
		}
		if len(ws) == 0 {
			delete(o.pending, s)
		} else {
			o.pending[s] = ws
		}
	}
}

// event is what has happened since the content was known.
type event int

const (
	// lived: the kernel and the file system live on. Every completed write is there.
	lived event = iota
	// lost: what was not flushed may be lost.
	lost
)

// allowed returns what a sector may hold.
func (o *oracle) allowed(s int64, e event) []version {
	vs := []version{o.stable[s]}
	for _, w := range o.pending[s] {
		if e == lived && w.completed {
			vs = vs[:0]
		}
		vs = append(vs, w.version)
	}
	return vs
}

// maxShown bounds the wrong sectors that an error lists.
const maxShown = 6

// check compares content, the whole disk, with what is allowed. What is found is
// then what is known: after lost it came from the device.
func (o *oracle) check(content []byte, e event) error {
	var wrong []string
	count := 0
	fail := func(s int64, what string) {
		if count++; count <= maxShown {
			wrong = append(wrong, fmt.Sprintf("sector %d: found %s, expected %v", s, what, o.allowed(s, e)))
		}
	}
	for s := range int64(len(o.stable)) {
		v, err := found(content[s*sectorSize:], o.disk, s)
		switch {
		case err != nil:
			fail(s, err.Error())
		case len(o.pending[s]) == 0 && v == o.stable[s]:
		case !slices.Contains(o.allowed(s, e), v):
			fail(s, v.String())
		case e == lived:
			// Still not flushed, but the only one that can be there.
			if v != o.stable[s] || len(o.pending[s]) > 0 {
				o.pending[s] = append(o.pending[s], write{v, true})
			}
		}
		if e == lost && err == nil {
			o.stable[s] = v
		}
	}
	if e == lost {
		clear(o.pending)
	}
	if count == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d sectors are wrong:\n\t%s", count, len(o.stable), strings.Join(wrong, "\n\t"))
}
