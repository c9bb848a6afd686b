package crash

import (
	"errors"
	"fmt"
	"time"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// stopWait limits the wait for space of a process that is to end. stopRetry is its interval
// (cmd/cowblk).
const (
	stopWait  = 10 * time.Second
	stopRetry = 200 * time.Millisecond
)

// stopServed ends the serving of a disk like "cowblk stop": it repeats the last flush for a while
// if there is no space for it, then closes the disk, with or without its map.
func (pl *player) stopServed(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	pl.markLost()
	delete(pl.open, s.Name)
	at := pl.m.Len()
	var err error
	last := v.queues[0].ch
	for _, l := range v.queues[1:] {
		err = errors.Join(err, l.ch.Close())
	}
	if err != nil {
		return err
	}
	v.queues = nil
	keeps := false
	work := func() error {
		v.o.Disk.BeginClose()
		for end := time.Now().Add(stopWait); ; time.Sleep(stopRetry) {
			err := flushBy(last)
			if err == nil || !cow.NoSpace(err) || !time.Now().Before(end) {
				break
			}
		}
		keeps = v.o.Disk.KeepsUnflushed()
		return errors.Join(last.Close(), v.o.Close())
	}
	if pl.killAfter > 0 {
		return pl.runUntilKilled(s, work, func() { v.closeDead() })
	}
	if pl.fault > 0 {
		// A goroutine that makes a call without a turn may hold a mutex.
		pl.sched.arm(pl.fault, pl.errno(), true, false)
		pl.fault = 0
	}
	reserve := pl.reserve()
	err = pl.run(work)
	pl.checkSpacePromise(s, reserve, err)
	if errors.Is(err, errStuck) {
		return err
	}
	lostSync := pl.sched.syncFailed()
	if fired, _ := pl.sched.disarm(); fired {
		pl.faults++
		pl.out.count("fault: stop")
	}
	if lostSync || err != nil && v.failed {
		pl.m.Mark(lost(s.Name))
	}
	switch {
	case err == nil && v.failed:
		pl.reportBroken(fmt.Errorf("%s succeeded after a failed flush", s))
	case err == nil && lostSync:
		// The sync may have been of another file, or was repeated.
	case err == nil:
		pl.m.Mark(flushed(s.Name, at))
		if pl.unwritten(s.Name) {
			pl.reportBroken(fmt.Errorf("%s succeeded, but the disk is reported as not written", s))
		}
	// the flush has consumed the first error
	case v.failed, lostSync && errors.Is(err, layer.ErrSyncFailed):
		return nil
	case cow.NoSpace(err) && pl.causedByFault(err):
		if !keeps {
			pl.reportBroken(fmt.Errorf("%s: without the map the next process loses writes", s))
		}
		pl.out.count("stop, without the map")
		return pl.acceptFault(s, err)
	default:
		return pl.acceptFault(s, err)
	}
	pl.out.count("stop")
	return nil
}

// flushBy flushes by a channel, and polls with sleeps, which a test with a stopped clock sees.
func flushBy(ch *cow.Channel) error {
	req := cow.Request{Op: cow.OpFlush}
	ch.Submit(&req)
	for len(ch.Completed(make([]*cow.Request, 0, 1))) == 0 {
		time.Sleep(time.Millisecond)
	}
	return req.Err
}

// unwritten is store.Unclean, as "cowblk stop" asks in another process.
func (pl *player) unwritten(name string) bool {
	other, err := openStore(pl.m.Process(nil))
	return err == nil && other.Unclean(name)
}

// stop ends the serving of a disk in order, or tries to.
func (g *generator) stop(name string, d *plannedDisk) {
	g.writes(name, d)
	switch g.rng.IntN(5) {
	case 0:
		g.add(Step{Verb: "fault", Name: g.randomNumber(12)})
	case 1:
		g.add(Step{Verb: "full", Name: g.randomNumber(80), Arg: "store"})
	case 2:
		g.add(Step{Verb: "kill", Name: g.randomNumber(12)})
		g.allClosed()
	case 3:
		g.promote(name, d)
	}
	g.add(Step{Verb: "stop", Name: name})
	g.add(Step{Verb: "full", Name: "0", Arg: "store"})
	d.open = false
	switch g.rng.IntN(4) {
	case 0:
		g.add(Step{Verb: "peek", Name: name})
	case 1:
		g.change(name, d)
	default:
		g.open(name, d)
		g.writes(name, d)
	}
}
