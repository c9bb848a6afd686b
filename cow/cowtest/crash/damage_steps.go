package crash

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

func manifestPath(disk string) string { return path.Join(storeDir, "disks", disk, "disk.json") }

// damage damages the manifest of a disk, as a file system does that has lost a block: "cut"
// truncates it, "bit" flips a bit, "empty" empties it. The disk may be served at that time. No
// change of the disk by another step is half done.
func (pl *player) damage(s Step) error {
	if pl.savedManifests[s.Name] != nil || len(pl.m.Files(path.Join(storeDir, "tmp"))) > 0 {
		return nil
	}
	seen, err := pl.manifests()
	if err != nil {
		return err
	}
	if _, there := seen[s.Name]; !there {
		return nil
	}
	saved, err := pl.m.Content(manifestPath(s.Name))
	if err != nil {
		return err
	}
	pl.m.Mark(reliedOn(s.String(), seen))
	off, n := int64(0), 0
	switch s.Arg {
	case "cut":
		n = pl.rng.IntN(len(saved)-2) + 1
	case "bit":
		if off, err = pl.harmfulBit(s.Name, saved); off < 0 || err != nil {
			return err
		}
	}
	pl.m.Mark(changing(s.String(), func(w *world) bool {
		d := w.disks[s.Name]
		if d == nil || d.saved != nil {
			return false
		}
		d.saved, w.strays = saved, true
		return true
	}))
	p := pl.m.Process(nil)
	f, err := p.OpenFile(manifestPath(s.Name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if s.Arg == "bit" {
		_, err = f.WriteAt([]byte{saved[off/8] ^ 1<<(off%8)}, off/8)
	} else {
		err = f.Truncate(int64(n))
	}
	if err := errors.Join(err, f.Datasync(), f.Close()); err != nil {
		return err
	}
	pl.savedManifests[s.Name] = saved
	pl.m.Mark(changed(s.String()))
	what := s.Verb + ", " + s.Arg
	if pl.open[s.Name] != nil {
		what += ", served"
	}
	pl.out.count(what)
	return nil
}

// harmfulBit returns a bit of a manifest that makes it unreadable if flipped. With other bits
// flipped it is a valid manifest, of this program or a newer one, and the disk must not be removed
// as damaged. -1: none was found.
func (pl *player) harmfulBit(disk string, saved []byte) (int64, error) {
	for range 16 {
		bit := pl.rng.Int64N(int64(len(saved)) * 8)
		m := pl.m.Clone()
		if err := m.Flip(manifestPath(disk), bit); err != nil {
			return -1, err
		}
		s, err := openStore(m.Process(nil))
		if err != nil {
			return -1, err
		}
		_, err = s.Disk(disk)
		_, plan := s.PlanRemoveDamaged(disk)
		if err == nil && !errors.Is(plan, store.ErrInvalid) {
			pl.reportBroken(fmt.Errorf(
				"bit %d of the manifest of disk %s: it can be read, but may be removed as damaged: %v", bit, disk, plan))
		}
		if err != nil && plan == nil {
			return bit, nil
		}
	}
	return -1, nil
}

// mend restores a manifest that was damaged: everything that it names must exist.
func (pl *player) mend(s Step) error {
	saved := pl.savedManifests[s.Name]
	if room := pl.m.FreePages(); saved == nil || room >= 0 && room < 4 {
		return nil // restoring it needs space
	}
	pl.m.Mark(changing(s.String(), func(w *world) bool {
		d := w.disks[s.Name]
		if d == nil || d.saved == nil {
			return false
		}
		d.saved = nil
		return true
	}))
	p := pl.m.Process(nil)
	// a failed removal has got this far
	if _, err := p.Stat(path.Dir(manifestPath(s.Name))); err != nil {
		pl.m.Mark(refused(s.String()))
		return nil
	}
	if err := restoreManifest(p, s.Name, saved); err != nil {
		return err
	}
	delete(pl.savedManifests, s.Name)
	pl.m.Mark(changed(s.String()))
	pl.out.count(s.Verb)
	return nil
}

// refusedForDamage reports whether a step was refused because the manifest of one of its disks is
// damaged or, for the removal of an image, the manifest of any disk.
func (pl *player) refusedForDamage(s Step, err error) bool {
	if !errors.Is(err, store.ErrRefused) && !errors.Is(err, store.ErrNotFound) {
		return false
	}
	if s.Verb == "remove" && len(pl.savedManifests) > 0 && pl.savedManifests[s.Name] == nil {
		_, nerr := pl.m.Content(manifestPath(s.Name))
		return nerr != nil // an image
	}
	list := names(s.Name)
	if s.Verb == "create" {
		if ref, perr := store.ParseRef(s.Arg); perr == nil {
			list = append(list, ref.Name)
		}
	}
	return slices.ContainsFunc(list, func(name string) bool {
		return pl.savedManifests[name] != nil
	})
}

// removedDamaged checks the result of "remove-damaged". done: its notes are on the tape.
func (pl *player) removedDamaged(s Step, err error) (done bool) {
	served := pl.open[s.Name] != nil
	switch {
	case err == nil && served:
		pl.reportBroken(fmt.Errorf("%s succeeded, but the disk is served", s))
	case err == nil:
		delete(pl.savedManifests, s.Name)
	case errors.Is(err, store.ErrInUse) && served, errors.Is(err, store.ErrInvalid) &&
		pl.savedManifests[s.Name] == nil:
		pl.m.Mark(refused(s.String()))
		pl.out.count(s.Verb + ", refused")
		return true
	}
	return false
}

// damaged returns the disks of a world whose manifests are damaged.
func (w *world) damaged() map[string]*disk {
	c := maps.Clone(w.disks)
	maps.DeleteFunc(c, func(_ string, d *disk) bool { return d.saved == nil })
	return c
}

// undamaged returns the other disks.
func (w *world) undamaged() map[string]*disk {
	c := maps.Clone(w.disks)
	maps.DeleteFunc(c, func(_ string, d *disk) bool { return d.saved != nil })
	return c
}

// restoreManifests restores the manifests of a machine that w describes, and checks the content of
// the disks.
func (w *world) restoreManifests(m *faultfs.Machine) error {
	damaged := w.damaged()
	if len(damaged) == 0 {
		return nil
	}
	p := m.Process(nil)
	for name, d := range damaged {
		if err := restoreManifest(p, name, d.saved); err != nil {
			return err
		}
	}
	s, err := openStore(p)
	if err != nil {
		return err
	}
	for name, d := range damaged {
		seen, err := readDisk(s, name)
		if err == nil {
			err = d.check(name, seen)
		}
		if err != nil {
			return fmt.Errorf("disk %s, whose manifest was damaged and restored: %w", name, err)
		}
	}
	return nil
}

func restoreManifest(p vfs.FS, name string, saved []byte) error {
	return p.WriteFileAtomic(manifestPath(name), saved, 0o600)
}

// withResetTimes returns a disk that could not be read, with times for the start of another tape.
func (d *disk) withResetTimes() *disk {
	done := map[*content]bool{}
	d.content.resetTimes(done)
	for _, t := range d.tags {
		t.content.resetTimes(done)
	}
	return d
}

func (c *content) resetTimes(done map[*content]bool) {
	if c == nil || done[c] {
		return
	}
	done[c] = true
	for _, list := range c.sectors {
		for _, w := range list {
			w.begin, w.end, w.acked = -1, -1, len(list) == 1
			w.below.resetTimes(done)
		}
	}
}

// damage makes a disk lose its manifest. The disk is then removed, or gets the manifest back.
func (g *generator) damage(name string, d *plannedDisk) {
	if g.rng.IntN(2) == 0 && len(g.disks) < 5 {
		g.writes(name, d)
		g.promote(name, d)
		g.add(Step{Verb: "wait"})
		tag := d.tags[len(d.tags)-1]
		c := &plannedDisk{unit: d.unit, size: d.size, tags: slices.Clone(d.tags)}
		s := Step{Verb: "create", Name: g.name("d"), Arg: name + "@" + tag, Size: d.size}
		g.add(s)
		g.disks[s.Name] = c
		g.writes(s.Name, c)
	}
	how := []string{"cut", "bit", "empty"}[g.rng.IntN(3)]
	damage, remove := Step{Verb: "damage", Name: name, Arg: how}, Step{Verb: "remove-damaged",
		Name: name}
	if g.rng.IntN(3) == 0 {
		g.writes(name, d)
		g.add(damage)
		g.add(remove) // refused: it is served
		g.request(name, d)
	} else {
		g.stopOrKill(name, d)
		g.add(damage)
	}
	delete(g.disks, name)
	if other, o := g.pick(); o != nil && g.rng.IntN(2) == 0 {
		g.change(other, o)
	}
	if d.open {
		g.add(Step{Verb: []string{"close", "stop"}[g.rng.IntN(2)], Name: name})
		d.open = false
	}
	if g.rng.IntN(3) == 0 {
		g.add(Step{Verb: "mend", Name: name})
		g.disks[name] = d
		g.open(name, d)
		return
	}
	switch g.rng.IntN(4) {
	case 0:
		g.add(Step{Verb: "fault", Name: g.randomNumber(40)})
	case 1:
		g.add(Step{Verb: "kill", Name: g.randomNumber(20)})
		g.allClosed()
	}
	g.add(remove)
	if other, o := g.pick(); o != nil {
		g.change(other, o)
	}
}
