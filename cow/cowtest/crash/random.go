package crash

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"cowblk/cow"
	"cowblk/cow/cowtest"
)

// generator makes random scripts that can be carried out: it tracks the existing disks and tags.
type generator struct {
	rng    *rand.Rand
	disks  map[string]*plannedDisk
	images []string
	script []Step
	label  string
	made   int         // number of names made so far
	held   [][2]string // disk and tag that another process may have open
}

type plannedDisk struct {
	size int64
	unit int
	tags []string
	open bool
}

// Script makes a random script of about n steps for a store with the content w; nil: an empty
// store.
//
// label makes names that no other script has. inOrder: all disks are closed at the end.
func Script(rng *rand.Rand, w *world, n int, label string, inOrder bool) []Step {
	g := &generator{rng: rng, label: label, disks: map[string]*plannedDisk{}}
	if w != nil {
		g.images = sortedKeys(w.images)
		for _, name := range sortedKeys(w.damaged()) {
			g.add(Step{Verb: []string{"mend", "remove-damaged"}[rng.IntN(2)], Name: name})
		}
		for name, d := range w.undamaged() {
			p := &plannedDisk{size: d.content.size, unit: 4096}
			for _, t := range d.tags {
				p.tags = append(p.tags, t.name)
			}
			g.disks[name] = p
		}
	}
	for len(g.script) < n {
		g.step()
	}
	if inOrder {
		g.add(Step{Verb: "full", Name: "0", Arg: "store"})
		g.add(Step{Verb: "room", Name: "-1"})
		for _, name := range sortedKeys(g.disks) {
			// A disk whose open was refused is closed too: the generator does not know whether it
			// is open.
			g.add(Step{Verb: "close", Name: name})
		}
	}
	return g.script
}

func (g *generator) add(s Step) { g.script = append(g.script, s) }

func (g *generator) name(prefix string) string {
	g.made++
	return fmt.Sprintf("%s%s%d", prefix, g.label, g.made)
}

// pick returns a random disk; "" if there is none.
func (g *generator) pick() (string, *plannedDisk) {
	names := sortedKeys(g.disks)
	if len(names) == 0 {
		return "", nil
	}
	name := names[g.rng.IntN(len(names))]
	return name, g.disks[name]
}

func (g *generator) step() {
	name, d := g.pick()
	if d == nil || len(g.disks) < 3 && g.rng.IntN(25) == 0 {
		g.create()
		return
	}
	if g.rng.IntN(40) == 0 {
		g.add(Step{Verb: "version", Name: []string{"older", "now"}[g.rng.IntN(2)]})
	}
	switch k := g.rng.IntN(130); {
	case k >= 100:
		g.event(name, d)
	case k < 72:
		g.open(name, d)
		for range 1 + g.rng.IntN(4) {
			g.request(name, d)
		}
	case k < 84:
		g.promote(name, d)
	case k < 88:
		g.close(name, d)
	case k < 91 && len(d.tags) > 0:
		g.close(name, d)
		i := g.rng.IntN(len(d.tags))
		g.add(Step{Verb: "rollback", Name: name, Arg: d.tags[i]})
		d.tags = slices.Clone(d.tags[:i+1])
	case k < 93:
		g.close(name, d)
		g.add(Step{Verb: "remove", Name: name})
		delete(g.disks, name)
	case k < 96:
		g.kill("")
	case k < 97 && d.open:
		g.add(Step{Verb: "take-over", Name: name})
	case k < 98 && len(g.images) < 2:
		g.importAny()
	case k < 99:
		g.add(Step{Verb: "wait"})
	case d.open:
		g.add(Step{Verb: "sum", Name: name})
	}
}

func (g *generator) close(name string, d *plannedDisk) {
	if d.open {
		g.add(Step{Verb: "close", Name: name})
		d.open = false
	}
}

func (g *generator) create() {
	units := []int{4096, 4096, 4096, 512, 8192, 65536}
	p := &plannedDisk{unit: units[g.rng.IntN(len(units))],
		size: 24<<10 + g.rng.Int64N(48)*cowtest.SectorSize}
	s := Step{Verb: "create", Name: g.name("d")}
	if from, d := g.pick(); d != nil && len(d.tags) > 0 && g.rng.IntN(2) == 0 {
		i := g.rng.IntN(len(d.tags))
		s.Arg = from + "@" + d.tags[i]
		p.tags, p.unit, p.size = slices.Clone(d.tags[:i+1]), d.unit, d.size
		if g.rng.IntN(3) == 0 {
			p.size += 8192
		}
		// A disk that is being served may not have sealed the tag's layer yet.
		g.add(Step{Verb: "wait"})
	} else if len(g.images) > 0 && g.rng.IntN(4) == 0 {
		s.Arg = g.images[g.rng.IntN(len(g.images))]
	}
	s.Size, s.Unit = p.size, p.unit
	if s.Arg != "" && len(p.tags) > 0 {
		s.Unit = 0
	}
	g.add(s)
	g.disks[s.Name] = p
}

func (g *generator) promote(name string, d *plannedDisk) {
	tag := g.name("t")
	list := name
	d.tags = append(d.tags, tag)
	for _, other := range sortedKeys(g.disks) {
		if o := g.disks[other]; other != name && o.open == d.open && g.rng.IntN(3) == 0 {
			list += "," + other
			o.tags = append(o.tags, tag)
		}
	}
	g.add(Step{Verb: "promote", Name: list, Arg: tag})
}

// request adds a guest's request, often at a place that was used before.
func (g *generator) request(name string, d *plannedDisk) {
	s := Step{Name: name}
	switch k := g.rng.IntN(20); {
	case k < 12:
		s.Op.Op = cow.OpWrite
	case k < 14:
		s.Op.Op = cow.OpDiscard
	case k < 16:
		s.Op.Op = cow.OpWriteZeroes
	default:
		s.Op.Op = cow.OpFlush
	}
	s.Verb = s.Op.Op.String()
	if s.Op.Op != cow.OpFlush {
		s.Op.FUA = g.rng.IntN(10) == 0
		s.Op.Ranges = []cow.Range{g.place(d)}
		if s.Op.Op != cow.OpWrite && g.rng.IntN(4) == 0 {
			s.Op.Ranges = append(s.Op.Ranges, g.place(d))
		}
	}
	g.add(s)
}

func (g *generator) place(d *plannedDisk) cow.Range {
	sectors := d.size / cowtest.SectorSize
	first := g.rng.Int64N(sectors)
	if g.rng.IntN(2) == 0 { // the same few blocks again and again
		first = g.rng.Int64N(min(sectors, 24))
	}
	n := 1 + g.rng.Int64N(20)
	if per := int64(max(d.unit, 512)) / cowtest.SectorSize; g.rng.IntN(2) == 0 {
		first -= first % per
		n = (n + per - 1) / per * per
	}
	return cow.Range{Offset: first * cowtest.SectorSize,
		Length: min(n, sectors-first) * cowtest.SectorSize}
}
