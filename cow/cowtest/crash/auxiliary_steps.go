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

// auxiliaryStep carries out a step that is not about a disk's server. done is false if the step is
// another one.
func (pl *player) auxiliaryStep(s Step) (done bool, err error) {
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
		if err := pl.runUntil(func() bool { return pl.jobs == 0 || pl.swapped }); err != nil {
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
		pl.killAfter, err = strconv.Atoi(s.Name)
		return err
	}
	pl.out.count("kill")
	pl.kill()
	pl.kills++
	return pl.start()
}

// errnos are errors of an open that have nothing to do with the disk.
var errnos = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO,
	syscall.EACCES, syscall.ENOSPC}

func (pl *player) errno() syscall.Errno { return errnos[pl.rng.IntN(len(errnos))] }

// tagReader is a tag that another process has open.
type tagReader struct {
	disk, tag string
	r         *store.Reading
	content   []byte
}

// holdWait limits a reader's wait for a tag that is being sealed.
const holdWait = 2 * time.Second

// hold opens a tag in another process, which survives a kill of this one.
func (pl *player) hold(s Step) error {
	key := s.Name + "@" + s.Arg
	if pl.holds[key] != nil {
		return nil
	}
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return err
	}
	h := &tagReader{disk: s.Name, tag: s.Arg}
	err = pl.run(func() (err error) {
		ctx, stop := context.WithTimeout(context.Background(), holdWait)
		defer stop()
		if h.r, err = other.OpenTag(ctx, store.Ref{Name: s.Name, Tag: s.Arg},
			pl.readerOptions()); err == nil {
			h.content, err = readAll(h.r.Disk)
		}
		return err
	})
	if err != nil {
		if h.r != nil {
			return errors.Join(err, h.r.Close())
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrInUse) ||
			pl.refused(s, err) {
			return nil
		}
		return err
	}
	pl.m.Mark(foundTag(s.Name, s.Arg, h.content))
	pl.holds[key] = h
	pl.out.count(s.Verb)
	return nil
}

// release closes what hold has opened. The content of a tag never changes.
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
		pl.reportBroken(fmt.Errorf("tag %s has changed since it was opened", key))
	}
	pl.out.count(s.Verb)
	return nil
}

// peek reads a disk that is not open, as another process without write permission does.
func (pl *player) peek(s Step) error {
	if pl.open[s.Name] != nil {
		return nil
	}
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return err
	}
	var p []byte
	err = pl.run(func() error {
		r, err := other.OpenTag(context.Background(), store.Ref{Name: s.Name}, pl.readerOptions())
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
	pl.m.Mark(reliedOn(s.String(), seen))
	pl.m.Mark(found(s.Name, p))
	pl.out.count(s.Verb)
	return nil
}

// openFault opens a disk while one call on files fails that is not a sync.
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

// sleep waits until a background round has begun. If the round can end, completed writes from
// before are durable.
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

// detach leaves a disk for another process, which does not open it at once.
func (pl *player) detach(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	at := pl.m.Len()
	return pl.stop(s, v, at, func() (bool, error) { return v.detach() })
}

// detach is the old process's part of a takeover. detached: it no longer has the disk.
func (v *served) detach() (detached bool, err error) {
	detached, err = v.o.Disk.Detach()
	if !detached {
		return false, err
	}
	return true, errors.Join(err, v.o.Lock.Unlock())
}

// stop ends the serving of a disk by f, which may be killed. f reports whether the disk is closed.
// Otherwise stop closes it in order, as a daemon does.
func (pl *player) stop(s Step, v *served, at int, f func() (bool, error)) error {
	var err error
	for _, l := range v.queues {
		err = errors.Join(err, l.ch.Close())
	}
	v.queues = nil
	if err != nil {
		return err
	}
	closed := false
	work := func() (err error) {
		closed, err = f()
		return err
	}
	if pl.killAfter > 0 {
		delete(pl.open, s.Name)
		return pl.runUntilKilled(s, work, func() { v.closeDead() })
	}
	err = pl.run(work)
	if closed {
		delete(pl.open, s.Name)
	}
	switch {
	case errors.Is(err, errStuck):
		return err
	case !closed: // refused: for example a former head is not sealed, or a flush has failed
		if err := pl.acceptFault(s, err); err != nil && !errors.Is(err, cow.ErrPromoting) &&
			!errors.Is(err, cow.ErrFailed) {
			return err
		}
		pl.out.count(s.Verb + ", refused")
		return pl.closeDisk(Step{Verb: "close", Name: s.Name})
	case err != nil:
		return pl.acceptFault(s, err)
	}
	pl.out.count(s.Verb)
	return nil
}

// causedByFault reports whether the script caused an error by a fault.
func (pl *player) causedByFault(err error) bool {
	return errors.Is(err, errInjected) || errors.Is(err, faultfs.ErrFull)
}

// acceptFault handles the error of a step. It returns nil if a fault of the script caused it.
func (pl *player) acceptFault(s Step, err error) error {
	if pl.causedByFault(err) {
		pl.faults++
		pl.out.Errs = append(pl.out.Errs, fmt.Errorf("%s: %w", s, err))
		return nil
	}
	return pl.failed(s.String(), err)
}
