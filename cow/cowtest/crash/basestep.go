package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

// baseFile is a raw image outside of the store on which disks lie in place, and baseSize its length in bytes.
const (
	baseFile                     = "/base.raw"
	baseSize                     = 8 * cowtest.SectorSize
	inBase       cowtest.Content = firstSource + 100
	lockedFlock                  = "flock"  // as who serves the file raw has it, or anybody who may read it
	lockedImage                  = "image"  // QEMU's image locks, of a writer
	lockedWriter                 = "writer" // of bytes: only a writer of this program can have it
)

func baseBytes() []byte {
	p := make([]byte, baseSize)
	cowtest.Stamp(p, 0, inBase)
	return p
}

// putBase makes the base, unless it is there: to touch it would change it.
func putBase(m *faultfs.Machine) {
	if _, err := m.Content(baseFile); err != nil {
		m.Put(baseFile, baseBytes())
	}
}

// baseUnchanged looks whether the base is what it was: disks only read it.
func baseUnchanged(m *faultfs.Machine) error {
	p, err := m.Content(baseFile)
	if err == nil && !bytes.Equal(p, baseBytes()) {
		err = fmt.Errorf("%s: the base has been written to", baseFile)
	}
	return err
}

// lockBase has another process take a lock on the base, which it keeps when this one is killed.
func (pl *player) lockBase(s Step) error {
	if pl.foreign != nil {
		return nil
	}
	f, err := pl.m.Process(nil).OpenFile(baseFile, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	switch s.Name {
	case lockedFlock:
		err = f.Lock(true)
	case lockedImage:
		err = f.LockImage(vfs.ImageWrite)
	default:
		err = f.LockRange(0, baseSize, true)
	}
	if err != nil { // a disk that lies on it is open
		pl.out.count(s.String() + ", refused")
		if !errors.Is(err, vfs.ErrLocked) && !errors.Is(err, vfs.ErrImageLocked) {
			return err
		}
		return f.Close()
	}
	pl.foreign, pl.locked = f, s.Name
	pl.out.count(s.String())
	return nil
}

func (pl *player) unlockBase(s Step) error {
	if pl.foreign == nil {
		return nil
	}
	err := pl.foreign.Close()
	pl.foreign, pl.locked = nil, ""
	pl.out.count(s.String())
	return err
}

// onBase reports whether a disk lies on the base.
func (pl *player) onBase(name string) bool {
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return false
	}
	m, err := other.Disk(name)
	return err == nil && m.Base != nil && m.Base.Path == baseFile
}

// ofLockedBase reports whether a step was refused because somebody has a lock on the base.
func (pl *player) ofLockedBase(s Step, err error) bool {
	if pl.foreign == nil || !errors.Is(err, store.ErrInUse) || s.Arg == byForce && pl.locked != lockedWriter {
		return false
	}
	return s.Verb == "create" && s.Arg == baseFile && pl.locked == lockedWriter || slices.ContainsFunc(names(s.Name), pl.onBase)
}

// byForce is the argument of an open with the word --force-share.
const byForce = "share"

// openedBase looks at an open that has succeeded: whose base is locked it may have opened by force only.
func (pl *player) openedBase(s Step) {
	if pl.foreign == nil || !pl.onBase(s.Name) {
		return
	}
	if s.Arg != byForce || pl.locked == lockedWriter {
		pl.breaks(fmt.Errorf("%s succeeded, and somebody has a lock (%s) on the base", s, pl.locked))
	}
	pl.out.count("open, base shared by force, " + pl.locked)
}

// reader are the options of a process that reads beside the one that serves.
func (pl *player) reader() cow.Options { return cow.Options{ForceShare: pl.foreign != nil} }

// base has a disk on the base, which somebody else locks.
func (g *generator) base() {
	p := &planned{unit: []int{512, 4096}[g.rng.IntN(2)], size: 24 << 10}
	s := Step{Verb: "create", Name: g.name("d"), Arg: baseFile, Size: p.size, Unit: p.unit}
	locked := []string{lockedFlock, lockedFlock, lockedImage, lockedImage, lockedWriter}[g.rng.IntN(5)]
	if g.rng.IntN(3) == 0 {
		g.add(Step{Verb: "lock-base", Name: locked})
	}
	g.add(s)
	g.disks[s.Name] = p
	g.writes(s.Name, p)
	if g.rng.IntN(2) == 0 {
		g.promote(s.Name, p)
	}
	if g.rng.IntN(2) == 0 {
		g.add(Step{Verb: "stop", Name: s.Name})
	} else {
		g.kill("")
	}
	p.open = false
	g.add(Step{Verb: "lock-base", Name: locked})
	g.open(s.Name, p) // refused
	p.open = true
	if g.rng.IntN(4) == 0 {
		g.add(Step{Verb: "kill", Name: g.number(30)})
		g.allClosed()
	}
	g.add(Step{Verb: "open", Name: s.Name, Arg: byForce})
	if locked != lockedWriter {
		g.writes(s.Name, p)
	}
	switch g.rng.IntN(4) {
	case 0:
		g.kill("")
	case 1:
		g.promote(s.Name, p)
	case 2:
		g.close(s.Name, p)
		g.add(Step{Verb: "peek", Name: s.Name})
		g.promote(s.Name, p) // refused, while it is stopped
	}
	if g.rng.IntN(3) > 0 {
		g.add(Step{Verb: "unlock-base"})
	}
}
