package crash

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// world is one possible state of a store.
type world struct {
	images map[string]*content
	disks  map[string]*disk
	// strays: there may be layers that no disk names, because a manifest was damaged.
	strays bool
}

type disk struct {
	content *content
	tags    []tag  // oldest first
	image   string // the image below; "": none
	saved   []byte // the manifest from before it was damaged; nil: not damaged
}

type tag struct {
	name    string
	content *content
}

func (w *world) clone() *world {
	c := &world{images: maps.Clone(w.images), disks: map[string]*disk{}, strays: w.strays}
	for name, d := range w.disks {
		c.disks[name] = &disk{content: d.content, tags: slices.Clone(d.tags), image: d.image,
			saved: d.saved}
	}
	return c
}

// tagged returns a tag of the disk; nil: there is none.
func (d *disk) tagged(name string) *tag {
	for i := range d.tags {
		if d.tags[i].name == name {
			return &d.tags[i]
		}
	}
	return nil
}

// Oracle knows the states that a cut may leave at one position of a tape. Notes on the tape move it
// on.
type Oracle struct {
	// states are the possible states of the store: one, or two during a change.
	states []*world
	before int // number of states from before the current change
	// running are the writes in flight, by their keys on the tape.
	running map[*string]*write
	broken  error // an error observed while the machine ran
}

func (o *Oracle) started(key *string, w *write) {
	if o.running == nil {
		o.running = map[*string]*write{}
	}
	o.running[key] = w
}

// NewOracle returns the oracle of an empty store.
func NewOracle() *Oracle {
	return &Oracle{states: []*world{{images: map[string]*content{}, disks: map[string]*disk{}}}}
}

// clone returns an independent deep copy.
func (o *Oracle) clone() *Oracle {
	contents := map[*content]*content{}
	writes := map[*write]*write{}
	var deep func(c *content) *content
	deep = func(c *content) *content {
		if c == nil || contents[c] != nil {
			return contents[c]
		}
		n := c.clone()
		contents[c] = n
		for _, list := range n.sectors {
			for i, w := range list {
				if writes[w] == nil {
					x := *w
					x.below = deep(w.below)
					writes[w] = &x
				}
				list[i] = writes[w]
			}
		}
		return n
	}
	out := &Oracle{before: o.before, broken: o.broken}
	for _, w := range o.states {
		x := w.clone()
		for name, c := range x.images {
			x.images[name] = deep(c)
		}
		for _, d := range x.disks {
			d.content = deep(d.content)
			for i := range d.tags {
				d.tags[i].content = deep(d.tags[i].content)
			}
		}
		out.states = append(out.states, x)
	}
	for key, w := range o.running {
		if writes[w] != nil {
			out.started(key, writes[w])
		}
	}
	return out
}

// contents calls f once for each content of a disk and its tags.
func (o *Oracle) contents(name string, f func(*content)) {
	seen := map[*content]bool{}
	visit := func(c *content) {
		if !seen[c] {
			seen[c] = true
			f(c)
		}
	}
	for _, w := range o.states {
		if d := w.disks[name]; d != nil {
			visit(d.content)
			for _, t := range d.tags {
				visit(t.content)
			}
		}
	}
}

// check compares an observation with the possible states. It returns the state that matches.
func (o *Oracle) check(s *observation) (*world, error) {
	var errs []error
	for i, w := range o.states {
		err := w.check(s)
		if err == nil {
			return w, nil
		}
		if len(o.states) > 1 {
			err = fmt.Errorf("not state %d of %d: %w", i+1, len(o.states), err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (w *world) check(s *observation) error {
	if want, have := sorted(w.images), sorted(s.images); want != have {
		return fmt.Errorf("images: expected %q, found %q", want, have)
	}
	if want, have := sorted(w.undamaged()), sorted(s.disks); want != have {
		return fmt.Errorf("disks: expected %q, found %q", want, have)
	}
	if want, have := sorted(w.damaged()), sorted(s.damaged); want != have {
		return fmt.Errorf("disks with damaged manifests: expected %q, found %q", want, have)
	}
	if len(s.strays) > 0 && !w.strays {
		return fmt.Errorf("%q are left although no disk names them", s.strays)
	}
	for name, c := range w.images {
		if err := c.check(s.images[name]); err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
	}
	for name, d := range w.undamaged() {
		if err := d.check(name, s.disks[name]); err != nil {
			return err
		}
	}
	return nil
}

// check compares an observed disk with its possible content.
func (d *disk) check(name string, seen *observedDisk) error {
	var names []string
	for _, t := range d.tags {
		names = append(names, t.name)
	}
	if !slices.Equal(names, seen.names) {
		return fmt.Errorf("disk %s: expected tags %q, found %q", name, names, seen.names)
	}
	if err := d.content.check(seen.content); err != nil {
		return fmt.Errorf("disk %s: %w", name, err)
	}
	for i, t := range d.tags {
		if err := t.content.check(seen.tags[i]); err != nil {
			return fmt.Errorf("tag %s@%s: %w", name, t.name, err)
		}
	}
	return nil
}

// looksLike compares the names of disks and tags.
func (w *world) looksLike(seen map[string][]string) bool {
	whole := w.undamaged()
	if sorted(whole) != sorted(seen) {
		return false
	}
	for name, d := range whole {
		if !slices.EqualFunc(d.tags, seen[name], func(t tag, name string) bool {
			return t.name == name
		}) {
			return false
		}
	}
	return true
}

// fix makes the observation, which matches w, the only possible state.
func (o *Oracle) fix(w *world, s *observation) {
	n := &world{images: w.images, disks: map[string]*disk{}, strays: w.strays}
	for name, d := range w.damaged() {
		n.disks[name] = d.withResetTimes()
	}
	for name, seen := range s.disks {
		d := &disk{content: newContent(int64(len(seen.content)), nil), image: w.disks[name].image}
		d.content.fix(seen.content)
		for i, t := range seen.tags {
			c := newContent(int64(len(t)), nil)
			c.fix(t)
			d.tags = append(d.tags, tag{seen.names[i], c})
		}
		n.disks[name] = d
	}
	o.states = []*world{n}
}

func sorted[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), " ")
}
