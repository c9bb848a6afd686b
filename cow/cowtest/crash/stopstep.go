package crash

import (
	"errors"
	"fmt"
	"time"

	"cowblk/cow"
	"cowblk/cow/layer"
)

// How long a process that is to end waits for space, and how often it looks (cmd/cowblk).
const (
	stopWait  = 10 * time.Second
	stopRetry = 200 * time.Millisecond
)

// stopServed ends the serving of a disk as "cowblk stop" has it: the last flush, again for a while if there is no space
// for it, then the disk is closed, with or without its map, and given up.
func (pl *player) stopServed(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	pl.markLost()
	delete(pl.open, s.Name)
	at := pl.m.Len()
	var err error
	last := v.lanes[0].ch
	for _, l := range v.lanes[1:] {
		err = errors.Join(err, l.ch.Close())
	}
	if err != nil {
		return err
	}
	v.lanes = nil
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
	if pl.doom > 0 {
		return pl.doomed(s, work, func() { v.end() })
	}
	if pl.fault > 0 {
		// Calls that need no turn may be made by somebody who holds a mutex.
		pl.sched.arm(pl.fault, pl.errno(), true, false)
		pl.fault = 0
	}
	reserve := pl.reserve()
	err = pl.do(work)
	pl.promised(s, reserve, err)
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
		pl.breaks(fmt.Errorf("%s succeeded after a failed flush", s))
	case err == nil && lostSync:
		// The sync may have been of something else, or been made again.
	case err == nil:
		pl.m.Mark(flushed(s.Name, at))
		if pl.unwritten(s.Name) {
			pl.breaks(fmt.Errorf("%s succeeded, and the disk is said to be not written", s))
		}
	case v.failed, lostSync && errors.Is(err, layer.ErrSyncFailed): // the first error went with the flush
		return nil
	case cow.NoSpace(err) && pl.explained(err):
		if !keeps {
			pl.breaks(fmt.Errorf("%s: without the map the next process has not all that was written", s))
		}
		pl.out.count("stop, without the map")
		return pl.mayFail(s, err)
	default:
		return pl.mayFail(s, err)
	}
	pl.out.count("stop")
	return nil
}

// flushBy flushes by a channel, and waits for that where a test that stops the clock sees it.
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
func (g *generator) stop(name string, d *planned) {
	g.writes(name, d)
	switch g.rng.IntN(5) {
	case 0:
		g.add(Step{Verb: "fault", Name: g.number(12)})
	case 1:
		g.add(Step{Verb: "full", Name: g.number(80), Arg: "store"})
	case 2:
		g.add(Step{Verb: "kill", Name: g.number(12)})
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
