package crash

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
)

const (
	// reservePages is the number of free pages with which a store makes its reserve: each of its
	// files has a 256th of them.
	reservePages = 640
	// reserveFilesNeeded is the number of files of the reserve for which README.md's promises about
	// a full file system hold.
	reserveFilesNeeded = 14
)

// room limits the space on the file system.
func (pl *player) room(s Step) error {
	n, err := strconv.ParseInt(s.Name, 10, 64)
	if err != nil {
		return err
	}
	pl.m.SetFreePages(n)
	if n >= 0 && n < reservePages {
		state := "no reserve"
		if r := pl.reserve(); r >= reserveFilesNeeded {
			state = "whole reserve"
		} else if r > 0 {
			state = "part of the reserve"
		}
		pl.out.count("room, little, " + state)
	}
	return nil
}

// reserve returns the number of files of the store's reserve that occupy space.
func (pl *player) reserve() (n int) {
	for _, f := range pl.m.Files(path.Join(storeDir, "reserve")) {
		if p, err := pl.m.Content(f); err == nil && len(p) > 4096 {
			n++
		}
	}
	return n
}

// checkSpacePromise checks the result of a step that may have found no space, with this number of
// files in reserve at its start. A removal needs no space. With the reserve a disk can be opened,
// rolled back and stopped.
func (pl *player) checkSpacePromise(s Step, reserve int, err error) {
	room := pl.m.FreePages()
	if room < 0 {
		return
	}
	if pl.reserve() < reserve {
		pl.out.count(s.Verb + ", with the reserve")
	}
	if err == nil {
		if room < reservePages/2 {
			pl.out.count(s.Verb + ", little room")
		}
		return
	}
	if !errors.Is(err, faultfs.ErrFull) || errors.Is(err, errInjected) {
		return
	}
	pl.out.count(s.Verb + ", no room")
	switch s.Verb {
	case "remove", "remove-damaged", "check":
	case "open", "rollback", "stop":
		if reserve < reserveFilesNeeded {
			return
		}
	default:
		return
	}
	pl.reportBroken(fmt.Errorf("%s on a full file system, with %d files in reserve: %w", s, reserve,
		err))
}

// check is "check" and "check repair". Problems are no error.
func (pl *player) check(s Step) error {
	reserve := pl.reserve()
	err := pl.run(func() error {
		_, err := pl.s.Check(context.Background(), store.CheckOptions{Repair: s.Name == "repair"})
		return err
	})
	pl.checkSpacePromise(s, reserve, err)
	if err != nil {
		return pl.acceptFault(s, err)
	}
	pl.out.count(s.String())
	return nil
}

// fullFileSystem fills the file system and continues.
func (g *generator) fullFileSystem(name string, d *plannedDisk) {
	g.add(Step{Verb: "room", Name: fmt.Sprint(reservePages)})
	if g.rng.IntN(2) == 0 {
		g.kill("") // a process makes the reserve once
	}
	g.writes(name, d)
	if g.rng.IntN(2) == 0 {
		g.promote(name, d)
		g.add(Step{Verb: "wait"})
		g.writes(name, d)
	}
	little := func() {
		g.add(Step{Verb: "room", Name: fmt.Sprint([]int{0, 0, 0, 1, 2, 5}[g.rng.IntN(6)])})
	}
	little()
	for range 1 + g.rng.IntN(3) {
		other, o := g.pick()
		if o == nil {
			break
		}
		switch g.rng.IntN(8) {
		case 0:
			g.close(other, o)
			if len(o.tags) > 0 {
				i := g.rng.IntN(len(o.tags))
				g.add(Step{Verb: "rollback", Name: other, Arg: o.tags[i]})
				o.tags = slices.Clone(o.tags[:i+1]) // later tags may still exist, and are not used
			}
		case 1:
			if len(g.disks) > 1 {
				g.close(other, o)
				g.add(Step{Verb: "remove", Name: other})
				delete(g.disks, other)
			}
		case 2:
			g.close(other, o)
			g.promote(other, o)
		case 3:
			if o.open {
				g.add(Step{Verb: "stop", Name: other})
				o.open = false
			}
		case 4:
			g.add(Step{Verb: "check", Name: []string{"", "repair"}[g.rng.IntN(2)]})
		case 5:
			g.stopOrKill(other, o)
			g.open(other, o)
		case 6:
			g.writes(other, o)
			g.flush(other)
		default:
			g.kill("")
			g.open(other, o)
		}
		if g.rng.IntN(4) == 0 {
			little() // others use the freed space
		}
	}
	if g.rng.IntN(3) == 0 {
		return // the next change finds it full too
	}
	g.add(Step{Verb: "room", Name: fmt.Sprint(reservePages)})
	if g.rng.IntN(2) == 0 {
		g.kill("")
		if name, d := g.pick(); d != nil {
			g.change(name, d)
		}
	}
	if g.rng.IntN(3) > 0 {
		g.add(Step{Verb: "room", Name: "-1"})
	}
}
