//go:build integration

package outage

import (
	"fmt"
	"slices"
	"strings"
)

// write is one write to a sector, not covered by a completed flush.
type write struct {
	version   version
	completed bool
}

// oracle records the versions that each sector of a disk may hold.
type oracle struct {
	disk    uint32
	stable  []version         // last flushed version, by sector
	pending map[int64][]write // writes since the last flush, by sector, oldest first
	next    version
}

func newOracle(disk uint32, sectors int64) *oracle {
	return &oracle{disk: disk, stable: make([]version, sectors), pending: map[int64][]write{},
		next: 1}
}

// clone returns a copy of the oracle, for a backup.
func (o *oracle) clone() *oracle {
	c := *o
	c.stable = slices.Clone(o.stable)
	c.pending = map[int64][]write{}
	for s, ws := range o.pending {
		c.pending[s] = slices.Clone(ws)
	}
	return &c
}

// wrote records a write of n sectors, completed or not.
func (o *oracle) wrote(first, n int64, v version, completed bool) {
	for s := first; s < first+n; s++ {
		o.pending[s] = append(o.pending[s], write{v, completed})
	}
}

// flushed records a successful flush. No write may be in progress meanwhile.
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

// event is what happened since the last check.
type event int

const (
	// kernelSurvived: the kernel and the file system survived. Every completed write is there.
	kernelSurvived event = iota
	// deviceFailed: the kernel survived, but the device failed. Unflushed content may be lost, now
	// or later.
	deviceFailed
	// remounted: the file system was mounted again. Unflushed content may be lost; the content that
	// remains is durable.
	remounted
)

// allowed returns the versions that a sector may hold.
func (o *oracle) allowed(s int64, e event) []version {
	vs := []version{o.stable[s]}
	for _, w := range o.pending[s] {
		if e == kernelSurvived && w.completed {
			vs = vs[:0]
		}
		vs = append(vs, w.version)
	}
	return vs
}

// maxShown bounds the number of runs of wrong sectors that an error lists.
const maxShown = 4

// mismatches collects wrong sectors. It joins neighbours with the same fault.
type mismatches struct {
	count       int
	runs        []string
	first, last int64
	what        string
}

func (w *mismatches) add(s int64, what string) {
	w.count++
	if w.what == what && s == w.last+1 {
		w.last = s
		return
	}
	w.end()
	w.first, w.last, w.what = s, s, what
}

func (w *mismatches) end() {
	if w.what != "" {
		w.runs = append(w.runs, fmt.Sprintf("sectors %d to %d: %s", w.first, w.last, w.what))
	}
	w.what = ""
}

func (w *mismatches) err() error {
	if w.count == 0 {
		return nil
	}
	w.end()
	n := min(len(w.runs), maxShown)
	return fmt.Errorf("%d sectors are wrong, in %d runs; the first:\n\t%s", w.count, len(w.runs),
		strings.Join(w.runs[:n], "\n\t"))
}

// check compares content, the whole disk, with the allowed versions. The versions found become the
// expected ones until the next event.
func (o *oracle) check(content []byte, e event) error {
	var w mismatches
	for s := range int64(len(o.stable)) {
		v, err := readVersion(content[s*sectorSize:], o.disk, s)
		pending := len(o.pending[s]) > 0
		switch {
		case err != nil:
			w.add(s, fmt.Sprintf("%v, expected %v", err, o.allowed(s, e)))
			continue
		case v == o.stable[s] && !pending:
			continue
		case !slices.Contains(o.allowed(s, e), v):
			w.add(s, fmt.Sprintf("%v, expected %v", v, o.allowed(s, e)))
		}
		if e == remounted {
			o.stable[s] = v
		} else {
			o.pending[s] = append(o.pending[s], write{v, true}) // not flushed yet
		}
	}
	if e == remounted {
		clear(o.pending)
	}
	return w.err()
}
