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

// baseFile is a raw image outside the store on which disks lie in place. baseSize is its length in
// bytes.
const (
	baseFile                    = "/base.raw"
	baseSize                    = 8 * cowtest.SectorSize
	baseContent cowtest.Content = firstSource + 100
	// flock, as a process that serves the file raw has it, or any reader of the file
	lockedFlock  = "flock"
	lockedImage  = "image"  // QEMU's image locks of a writer
	lockedWriter = "writer" // range lock: only a writer of cowblk has it
)

func baseBytes() []byte {
	p := make([]byte, baseSize)
	cowtest.Stamp(p, 0, baseContent)
	return p
}

// putBase makes the base unless it exists: writing it again would change its times.
func putBase(m *faultfs.Machine) {
	if _, err := m.Content(baseFile); err != nil {
		m.Put(baseFile, baseBytes())
	}
}

// baseUnchanged checks the content of the base: disks only read it.
func baseUnchanged(m *faultfs.Machine) error {
	p, err := m.Content(baseFile)
	if err == nil && !bytes.Equal(p, baseBytes()) {
		err = fmt.Errorf("%s: the base has been written to", baseFile)
	}
	return err
}

// lockBase has another process take a lock on the base. That process survives a kill of this one.
func (pl *player) lockBase(s Step) error {
	if pl.baseLock != nil {
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
	if err != nil { // a disk on it is open
		pl.out.count(s.String() + ", refused")
		if !errors.Is(err, vfs.ErrLocked) && !errors.Is(err, vfs.ErrImageLocked) {
			return err
		}
		return f.Close()
	}
	pl.baseLock, pl.baseLockKind = f, s.Name
	pl.out.count(s.String())
	return nil
}

func (pl *player) unlockBase(s Step) error {
	if pl.baseLock == nil {
		return nil
	}
	err := pl.baseLock.Close()
	pl.baseLock, pl.baseLockKind = nil, ""
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

// refusedForLock reports whether a step was refused because another process has a lock on the base.
func (pl *player) refusedForLock(s Step, err error) bool {
	if pl.baseLock == nil || !errors.Is(err, store.ErrInUse) || s.Arg == forceShare &&
		pl.baseLockKind != lockedWriter {
		return false
	}
	return s.Verb == "create" && s.Arg == baseFile && pl.baseLockKind == lockedWriter ||
		slices.ContainsFunc(names(s.Name), pl.onBase)
}

// forceShare is the argument of an open with --force-share.
const forceShare = "share"

// openedBase checks a successful open: if the base is locked, only --force-share may have opened
// it.
func (pl *player) openedBase(s Step) {
	if pl.baseLock == nil || !pl.onBase(s.Name) {
		return
	}
	if s.Arg != forceShare || pl.baseLockKind == lockedWriter {
		pl.reportBroken(fmt.Errorf("%s succeeded, but another process has a lock (%s) on the base",
			s, pl.baseLockKind))
	}
	pl.out.count("open, base shared by force, " + pl.baseLockKind)
}

// readerOptions are the options of a process that reads beside the serving one.
func (pl *player) readerOptions() cow.Options { return cow.Options{ForceShare: pl.baseLock != nil} }

// lockedBase makes a disk on the base, which another process locks.
func (g *generator) lockedBase() {
	p := &plannedDisk{unit: []int{512, 4096}[g.rng.IntN(2)], size: 24 << 10}
	s := Step{Verb: "create", Name: g.name("d"), Arg: baseFile, Size: p.size, Unit: p.unit}
	locked := []string{lockedFlock, lockedFlock, lockedImage, lockedImage,
		lockedWriter}[g.rng.IntN(5)]
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
		g.add(Step{Verb: "kill", Name: g.randomNumber(30)})
		g.allClosed()
	}
	g.add(Step{Verb: "open", Name: s.Name, Arg: forceShare})
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
		g.promote(s.Name, p) // refused while it is stopped
	}
	if g.rng.IntN(3) > 0 {
		g.add(Step{Verb: "unlock-base"})
	}
}
