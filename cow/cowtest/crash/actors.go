package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
)

// actor carries out a step that is about somebody besides a disk's server; false: it is
// another one.
func (pl *player) actor(s Step) (done bool, err error) {
	switch s.Verb {
	case "hold":
		return true, pl.hold(s)
	case "release":
		return true, pl.release(s)
	case "peek":
		return true, pl.peek(s)
	case "open-fault":
		return true, pl.openFault(s)
	case "fault":
		n, err := strconv.Atoi(s.Name)
		if s.Arg == "sync" {
			pl.sched.armSync(n)
			pl.out.count("fault, sync")
		} else {
			pl.fault = n
		}
		return true, err
	case "full":
		return true, pl.full(s)
	case "sleep":
		return true, pl.sleep(s)
	case "detach":
		return true, pl.detach(s)
	case "damage":
		return true, pl.damage(s)
	case "mend":
		return true, pl.mend(s)
	case "room":
		return true, pl.room(s)
	case "check":
		return true, pl.check(s)
	case "lock-base":
		return true, pl.lockBase(s)
	case "unlock-base":
		return true, pl.unlockBase(s)
	case "older":
		return true, pl.older(s)
	case "version":
		return true, pl.version(s)
	}
	return false, nil
}

// killStep is "kill", "kill N" and "kill swapped".
func (pl *player) killStep(s Step) error {
	switch s.Name {
	case "":
		for range pl.rng.IntN(12) {
			pl.turn()
		}
	case "swapped":
		if err := pl.until(func() bool { return pl.jobs == 0 || pl.swapped }); err != nil {
			return err
		}
		if pl.jobs > 0 {
			pl.out.count("kill between swap and seal")
		}
		for range pl.rng.IntN(8) {
			pl.turn()
		}
	default:
		var err error
		pl.doom, err = strconv.Atoi(s.Name)
		return err
	}
	pl.out.count("kill")
	pl.kill()
	pl.kills++
	return pl.start()
}

// errnos are what an open can fail with that has nothing to do with the disk.
var errnos = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.EACCES, syscall.ENOSPC}

func (pl *player) errno() syscall.Errno { return errnos[pl.rng.IntN(len(errnos))] }

// held is a tag that another process has open.
type held struct {
	disk, tag string
	r         *store.Reading
	content   []byte
}

// holdWait is how long a reader waits for a tag that is being sealed.
const holdWait = 2 * time.Second

// hold opens a tag in another process, which goes on when this one is killed.
func (pl *player) hold(s Step) error {
	key := s.Name + "@" + s.Arg
	if pl.holds[key] != nil {
		return nil
	}
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return err
	}
	h := &held{disk: s.Name, tag: s.Arg}
	err = pl.do(func() (err error) {
		ctx, stop := context.WithTimeout(context.Background(), holdWait)
		defer stop()
		if h.r, err = other.OpenTag(ctx, store.Ref{Name: s.Name, Tag: s.Arg}, pl.reader()); err == nil {
			h.content, err = readAll(h.r.Disk)
		}
		return err
	})
	if err != nil {
		if h.r != nil {
			return errors.Join(err, h.r.Close())
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrInUse) || pl.refused(s, err) {
			return nil
		}
		return err
	}
	pl.m.Mark(foundTag(s.Name, s.Arg, h.content))
	pl.holds[key] = h
	pl.out.count(s.Verb)
	return nil
}

// release closes what hold has opened: a tag shows the same for ever.
func (pl *player) release(s Step) error {
	key := s.Name + "@" + s.Arg
	h := pl.holds[key]
	if h == nil {
		return nil
	}
	delete(pl.holds, key)
	p, err := readAll(h.r.Disk)
	if err := errors.Join(err, h.r.Close()); err != nil {
		return err
	}
	if !bytes.Equal(p, h.content) {
		pl.breaks(fmt.Errorf("tag %s shows something else than when it was opened", key))
	}
	pl.out.count(s.Verb)
	return nil
}

// peek reads a disk that is not open as another process does that may not write.
func (pl *player) peek(s Step) error {
	if pl.open[s.Name] != nil {
		return nil
	}
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return err
	}
	var p []byte
	err = pl.do(func() error {
		r, err := other.OpenTag(context.Background(), store.Ref{Name: s.Name}, pl.reader())
		if err != nil {
			return err
		}
		p, err = readAll(r.Disk)
		return errors.Join(err, r.Close())
	})
	if err != nil {
		if pl.refused(s, err) {
			return nil
		}
		return err
	}
	seen, err := pl.manifests()
	if err != nil {
		return err
	}
	pl.m.Mark(settled(s.String(), seen))
	pl.m.Mark(found(s.Name, p))
	pl.out.count(s.Verb)
	return nil
}

// openFault opens a disk while one call on files fails, which is not a sync.
func (pl *player) openFault(s Step) error {
	if pl.open[s.Name] != nil {
		return nil
	}
	n, err := strconv.Atoi(s.Arg)
	if err != nil {
		return err
	}
	pl.sched.arm(n, pl.errno(), false, true)
	err = pl.openDisk(s)
	switch fired, _ := pl.sched.disarm(); {
	case !fired:
		pl.out.count(s.Verb + ", too late")
	case pl.open[s.Name] == nil:
		pl.out.count(s.Verb + ", refused")
	default:
		pl.out.count(s.Verb + ", opened")
	}
	return err
}

// full makes the next calls fail that need space, on the store or in memory.
func (pl *player) full(s Step) error {
	n, err := strconv.Atoi(s.Name)
	if err != nil {
		return err
	}
	pl.sched.fill(n, s.Arg)
	if n > 0 {
		pl.out.count(s.Verb + " " + s.Arg)
	}
	return nil
}

// sleep lets the time pass in which a background round begins. If it can come to its
// end, what had completed before is durable.
func (pl *player) sleep(s Step) error {
	at := pl.m.Len()
	failing := pl.sched.filled() || pl.sched.syncFailed() || pl.life.Fault != nil
	time.Sleep(cow.DefaultFlushInterval + time.Second)
	pl.out.count(s.Verb)
	if pl.rng.IntN(2) == 0 {
		for range pl.rng.IntN(12) {
			pl.turn()
		}
		return nil
	}
	for pl.turn() {
	}
	if failing || pl.sched.filled() || pl.sched.syncFailed() {
		return nil
	}
	for _, name := range sortedKeys(pl.open) {
		if v := pl.open[name]; !v.failed && v.o.Disk.Stats().Failed == nil {
			pl.m.Mark(flushed(name, at))
		}
	}
	pl.out.count(s.Verb + ", to the end of the round")
	return nil
}

// detach leaves a disk for another process, which does not come at once.
func (pl *player) detach(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	at := pl.m.Len()
	return pl.stop(s, v, at, func() (bool, error) { return v.detach() })
}

// detach is the old process's half of a hand-over. detached: it has no part in the disk
// any more.
func (v *served) detach() (detached bool, err error) {
	detached, err = v.o.Disk.Detach()
	if !detached {
		return false, err
	}
	return true, errors.Join(err, v.o.Lock.Unlock())
}

// stop ends the serving of a disk by f, which may be killed in the middle. f reports
// whether the disk is closed; it is closed in order otherwise, as a daemon does.
func (pl *player) stop(s Step, v *served, at int, f func() (bool, error)) error {
	var err error
	for _, l := range v.lanes {
		err = errors.Join(err, l.ch.Close())
	}
	v.lanes = nil
	if err != nil {
		return err
	}
	closed := false
	work := func() (err error) {
		closed, err = f()
		return err
	}
	if pl.doom > 0 {
		delete(pl.open, s.Name)
		return pl.doomed(s, work, func() { v.end() })
	}
	err = pl.do(work)
	if closed {
		delete(pl.open, s.Name)
	}
	switch {
	case errors.Is(err, errStuck):
		return err
	case !closed: // refused: a former head is not sealed, say, or a flush has failed
		if err := pl.mayFail(s, err); err != nil && !errors.Is(err, cow.ErrPromoting) && !errors.Is(err, cow.ErrFailed) {
			return err
		}
		pl.out.count(s.Verb + ", refused")
		return pl.closeDisk(Step{Verb: "close", Name: s.Name})
	case err != nil:
		return pl.mayFail(s, err)
	}
	pl.out.count(s.Verb)
	return nil
}

// explained reports whether something was made to fail that an error comes of.
func (pl *player) explained(err error) bool {
	return errors.Is(err, errInjected) || errors.Is(err, faultfs.ErrFull)
}

// mayFail takes the error of a step: nil, if something was made to fail that explains it.
func (pl *player) mayFail(s Step, err error) error {
	if pl.explained(err) {
		pl.faults++
		pl.out.Errs = append(pl.out.Errs, fmt.Errorf("%s: %w", s, err))
		return nil
	}
	return pl.failed(s.String(), err)
}
