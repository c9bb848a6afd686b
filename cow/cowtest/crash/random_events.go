package crash

import (
	"slices"
	"strconv"

	"cowblk/cow"
)

func (g *generator) open(name string, d *plannedDisk) {
	if !d.open {
		g.add(Step{Verb: "open", Name: name})
		d.open = true
	}
}

// kill kills the process; see Step for how.
func (g *generator) kill(how string) {
	g.add(Step{Verb: "kill", Name: how})
	for _, d := range g.disks {
		d.open = false
	}
}

// writes adds some requests of a guest.
func (g *generator) writes(name string, d *plannedDisk) {
	g.open(name, d)
	for range 1 + g.rng.IntN(3) {
		g.request(name, d)
	}
}

func (g *generator) randomNumber(most int) string { return strconv.Itoa(1 + g.rng.IntN(most)) }

// stopOrKill makes sure that a disk is not open. Mostly its process was killed with unflushed
// writes.
func (g *generator) stopOrKill(name string, d *plannedDisk) {
	switch g.rng.IntN(4) {
	case 0:
		g.close(name, d)
	case 1:
		if d.open {
			g.add(Step{Verb: "detach", Name: name})
			d.open = false
		}
	default:
		g.writes(name, d)
		g.kill("")
	}
}

// event adds something that happens to a disk besides its guest's requests.
func (g *generator) event(name string, d *plannedDisk) {
	switch g.rng.IntN(29) {
	case 0, 1:
		g.heldFormerHead(name, d)
	case 2:
		g.twoClones(name, d)
	case 3:
		g.hold(name, d)
	case 4, 5:
		g.stopOrKill(name, d)
		g.add(Step{Verb: "open-fault", Name: name, Arg: g.randomNumber(60)})
		g.add(Step{Verb: "open", Name: name})
		d.open = true
	case 6, 7:
		g.stopOrKill(name, d)
		g.killDuring(name, d)
	case 8, 9:
		g.stopOrKill(name, d)
		g.add(Step{Verb: "fault", Name: g.randomNumber(90)})
		g.change(name, d)
		if g.disks[name] != nil {
			g.open(name, d)
		}
	case 10:
		g.open(name, d)
		g.add(Step{Verb: "fault", Name: g.randomNumber(90)})
		g.promote(name, d)
	case 11, 12:
		g.add(Step{Verb: "full", Name: g.randomNumber(6), Arg: []string{"store",
			"run"}[g.rng.IntN(2)]})
		if g.rng.IntN(2) == 0 {
			g.open(name, d)
			g.promote(name, d)
		} else {
			g.writes(name, d)
		}
		if g.rng.IntN(2) == 0 {
			g.kill("")
		}
		g.add(Step{Verb: "full", Name: "0", Arg: "store"})
	case 13:
		if g.rng.IntN(3) > 0 {
			// Make layers below the head that the older version opens.
			g.writes(name, d)
			g.promote(name, d)
			g.add(Step{Verb: "wait"})
			g.writes(name, d)
			g.kill("")
		} else {
			g.stopOrKill(name, d)
		}
		g.add(Step{Verb: "older", Name: name, Arg: []string{"close", "kill"}[g.rng.IntN(2)]})
		g.writes(name, d)
	case 15:
		g.failedSync(name, d)
	case 16:
		g.fullMap(name, d)
	case 17:
		g.fullMemory(name, d)
	case 18:
		g.noSharedMap(name, d)
	case 22, 23:
		g.damage(name, d)
	case 24, 25:
		g.lockedBase()
	case 26, 27, 28:
		g.fullFileSystem(name, d)
	case 19:
		g.importedImage()
	case 20, 21:
		g.stop(name, d)
	case 14:
		if g.rng.IntN(2) == 0 {
			g.writes(name, d)
			g.add(Step{Verb: "sleep"})
			return
		}
		g.writes(name, d)
		g.add(Step{Verb: "detach", Name: name})
		d.open = false
		if g.rng.IntN(2) == 0 {
			g.add(Step{Verb: "peek", Name: name})
		}
		g.open(name, d)
	}
}

// hold has another process open a tag, or close one.
func (g *generator) hold(name string, d *plannedDisk) {
	if n := len(g.held); n > 0 && (g.rng.IntN(2) == 0 || len(d.tags) == 0) {
		i := g.rng.IntN(n)
		g.add(Step{Verb: "release", Name: g.held[i][0], Arg: g.held[i][1]})
		g.held = slices.Delete(g.held, i, i+1)
		return
	}
	if len(d.tags) > 0 {
		g.holdTag(name, d.tags[g.rng.IntN(len(d.tags))])
	}
}

func (g *generator) holdTag(name, tag string) {
	g.add(Step{Verb: "hold", Name: name, Arg: tag})
	g.held = append(g.held, [2]string{name, tag})
}

// killSwapped leaves a former head that is not sealed, with unflushed writes.
func (g *generator) killSwapped(name string, d *plannedDisk) (tag string) {
	g.writes(name, d)
	g.promote(name, d)
	if g.rng.IntN(2) == 0 {
		g.request(name, d)
	}
	g.kill("swapped")
	return d.tags[len(d.tags)-1]
}

// heldFormerHead adds a reader of a former head that prevents the next server from sealing it.
func (g *generator) heldFormerHead(name string, d *plannedDisk) {
	tag := g.killSwapped(name, d)
	g.holdTag(name, tag)
	g.open(name, d)
	if g.rng.IntN(2) == 0 {
		g.writes(name, d)
	}
	switch g.rng.IntN(4) {
	case 0:
		g.close(name, d)
	case 1:
		g.kill("")
	case 2:
		g.promote(name, d)
	}
}

// twoClones makes two clones on a former head that is not sealed.
func (g *generator) twoClones(name string, d *plannedDisk) {
	tag := g.killSwapped(name, d)
	if g.rng.IntN(2) == 0 {
		g.holdTag(name, tag)
	}
	for range 2 {
		p := &plannedDisk{unit: d.unit, size: d.size, tags: slices.Clone(d.tags)}
		s := Step{Verb: "create", Name: g.name("d"), Arg: name + "@" + tag, Size: d.size}
		g.add(s)
		g.disks[s.Name] = p
		g.writes(s.Name, p)
	}
}

// failedSync makes a sync of a disk fail and serves the disk again.
func (g *generator) failedSync(name string, d *plannedDisk) {
	g.writes(name, d)
	g.add(Step{Verb: "fault", Name: g.randomNumber(4), Arg: "sync"})
	if g.rng.IntN(3) == 0 {
		g.promote(name, d)
	}
	g.flush(name)
	g.writes(name, d)
	g.flush(name)
	g.kill("")
	g.open(name, d)
	g.flush(name)
}

func (g *generator) flush(name string) {
	s := Step{Verb: cow.OpFlush.String(), Name: name}
	s.Op.Op = cow.OpFlush
	g.add(s)
}

// fullMap makes the map of a new head find no space at the first flush.
func (g *generator) fullMap(name string, d *plannedDisk) {
	g.open(name, d)
	g.promote(name, d)
	g.add(Step{Verb: "wait"})
	g.writes(name, d)
	g.add(Step{Verb: "full", Name: g.randomNumber(2), Arg: "store"})
	g.flush(name)
	g.add(Step{Verb: "wait"})
	g.add(Step{Verb: "full", Name: "0", Arg: "store"})
	g.flush(name)
}

// fullMemory makes a head find no memory for its first bits.
func (g *generator) fullMemory(name string, d *plannedDisk) {
	g.close(name, d)
	g.open(name, d)
	g.add(Step{Verb: "full", Name: g.randomNumber(3), Arg: "run"})
	g.writes(name, d)
	g.kill("")
	g.open(name, d)
}

// noSharedMap serves a disk without a shared map, because there was no memory for it.
func (g *generator) noSharedMap(name string, d *plannedDisk) {
	g.close(name, d)
	g.add(Step{Verb: "full", Name: "1", Arg: "run"})
	g.open(name, d)
	g.add(Step{Verb: "full", Name: "0", Arg: "run"})
	for range 3 {
		g.writes(name, d)
	}
	g.kill("")
	g.open(name, d)
}

// change changes the store, at a disk that is not open.
func (g *generator) change(name string, d *plannedDisk) {
	g.close(name, d)
	switch k := g.rng.IntN(4); {
	case k == 0 && len(d.tags) > 0:
		i := g.rng.IntN(len(d.tags))
		g.add(Step{Verb: "rollback", Name: name, Arg: d.tags[i]})
		d.tags = slices.Clone(d.tags[:i+1])
	case k == 1 && len(g.disks) > 1:
		g.add(Step{Verb: "remove", Name: name})
		delete(g.disks, name)
	case k == 2 && len(g.disks) < 4:
		g.create()
	default:
		g.promote(name, d)
	}
}

// killDuring kills the process in the middle of a step.
func (g *generator) killDuring(name string, d *plannedDisk) {
	switch g.rng.IntN(4) {
	case 0:
		g.open(name, d)
		g.add(Step{Verb: "kill", Name: g.randomNumber(20)})
		g.add(Step{Verb: "close", Name: name})
	case 1:
		g.writes(name, d)
		g.add(Step{Verb: "kill", Name: g.randomNumber(40)})
		g.add(Step{Verb: "take-over", Name: name})
	case 2:
		g.close(name, d)
		g.add(Step{Verb: "kill", Name: g.randomNumber(40)})
		g.add(Step{Verb: "open", Name: name})
	default:
		g.close(name, d)
		g.add(Step{Verb: "kill", Name: g.randomNumber(90)})
		g.change(name, d)
	}
	for _, d := range g.disks {
		d.open = false
	}
	if d := g.disks[name]; d != nil {
		g.open(name, d)
	}
}
