package crash

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/store"
)

// served is an open disk and its queues.
type served struct {
	pl     *player
	name   string
	o      *store.Opened
	queues []*queue
	failed bool // a flush failed for good: no later request may succeed
}

// queue is one queue: one request at a time.
type queue struct {
	v            *served
	ch           *cow.Channel
	req          cow.Request
	out          []*cow.Request
	active       bool
	submitted    bool // Submit has returned
	at           int  // position of the tape at submission
	afterFailure bool // a flush had failed before the submission
	what         string
	ended        func(ok, durable bool) *note
}

// openDisk opens a disk.
func (pl *player) openDisk(s Step) error {
	if pl.open[s.Name] != nil {
		return nil
	}
	var o *store.Opened
	work := func() (err error) {
		o, err = pl.s.OpenDisk(context.Background(), s.Name, store.OpenOptions{Serve: true,
			Cow: cow.Options{ForceShare: s.Arg == forceShare}})
		return err
	}
	if pl.killAfter > 0 {
		return pl.runUntilKilled(s, work, func() {
			if o != nil {
				_ = o.Close()
			}
		})
	}
	reserve := pl.reserve()
	err := pl.run(work)
	pl.checkSpacePromise(s, reserve, err)
	if err != nil {
		if pl.refused(s, err) {
			if pl.refusedForLock(s, err) {
				pl.out.count("open, base locked, refused")
			}
			return nil
		}
		return pl.acceptFault(s, err)
	}
	pl.openedBase(s)
	if pl.savedManifests[s.Name] != nil {
		pl.reportBroken(fmt.Errorf("%s succeeded, and the manifest is damaged", s))
	}
	pl.out.count("open")
	seen, err := pl.manifests()
	if err != nil {
		return err
	}
	pl.m.Mark(reliedOn(s.String(), seen))
	v := &served{pl: pl, name: s.Name, o: o}
	for i := range max(1, pl.life.Depth) {
		open := o.Disk.NewChannel
		if i%2 == 1 {
			open = o.Disk.NewAsyncChannel
		}
		ch, err := open()
		if err != nil {
			return err
		}
		v.queues = append(v.queues, &queue{v: v, ch: ch, out: make([]*cow.Request, 0, 1)})
	}
	pl.open[s.Name] = v
	if pl.life.Fault != nil {
		return nil
	}
	var p []byte
	err = pl.run(func() (err error) {
		p, err = readAll(o.Disk)
		return err
	})
	if err != nil {
		return pl.acceptFault(s, err)
	}
	pl.m.Mark(found(s.Name, p))
	pl.m.Mark(visible(s.Name, p))
	return nil
}

// manifests returns the disks that another process sees, and their tags.
func (pl *player) manifests() (map[string][]string, error) {
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return nil, err
	}
	disks, err := other.Disks()
	if err != nil && len(pl.savedManifests) > 0 {
		err = nil // the error is about damaged disks; another missing disk fits no state
	}
	seen := map[string][]string{}
	for _, d := range disks {
		seen[d.Name] = nil
		for _, l := range d.Sealed() {
			if l.Tag != "" {
				seen[d.Name] = append(seen[d.Name], l.Tag)
			}
		}
	}
	return seen, err
}

func (pl *player) closeDisk(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	pl.markLost()
	delete(pl.open, s.Name)
	at := pl.m.Len()
	var err error
	for _, l := range v.queues {
		err = errors.Join(err, l.ch.Close())
	}
	if pl.killAfter > 0 {
		return errors.Join(err, pl.runUntilKilled(s, v.o.Close, func() { v.closeDead() }))
	}
	if e := pl.run(v.o.Close); errors.Is(e, errStuck) {
		return e
	} else {
		err = errors.Join(err, e)
	}
	if err != nil {
		if pl.life.Fault != nil || v.failed || pl.sched.syncFailed() {
			pl.m.Mark(lost(s.Name)) // a sync may have failed
		}
		if v.failed {
			return nil
		}
		return pl.acceptFault(s, err)
	}
	pl.out.count("close")
	if v.failed {
		pl.reportBroken(fmt.Errorf("%s succeeded after a failed flush", s))
	}
	pl.m.Mark(flushed(s.Name, at))
	return nil
}

// takeOver detaches a disk and opens it again, as the old and the new process of a takeover do.
func (pl *player) takeOver(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	if pl.killAfter > 0 {
		var o *store.Opened
		for _, l := range v.queues {
			_ = l.ch.Close()
		}
		delete(pl.open, s.Name)
		return pl.runUntilKilled(s, func() error {
			if detached, err := v.detach(); !detached || err != nil {
				return nil // the process is killed anyway
			}
			var err error
			o, err = pl.s.OpenDisk(context.Background(), s.Name, store.OpenOptions{Serve: true})
			return err
		}, func() {
			v.closeDead()
			if o != nil {
				_ = o.Close()
			}
		})
	}
	if err := pl.detach(s); err != nil || pl.open[s.Name] != nil {
		return err
	}
	return pl.openDisk(s)
}

// reportBroken keeps the first broken promise that was seen while the machine ran.
func (pl *player) reportBroken(err error) {
	if pl.out.Broken == nil {
		pl.out.Broken = err
	}
}

// closeDead closes a dead process's disk.
func (v *served) closeDead() {
	for _, l := range v.queues {
		_ = l.ch.Close()
	}
	_ = v.o.Close()
}

func (v *served) busy() bool {
	return slices.ContainsFunc(v.queues, func(l *queue) bool { return l.active })
}

// request submits a guest's request to a free queue.
func (pl *player) request(s Step) error {
	v := pl.open[s.Name]
	if v == nil {
		return nil // its open failed
	}
	var free []*queue
	err := pl.runUntil(func() bool {
		free = free[:0]
		for _, l := range v.queues {
			if !l.active {
				free = append(free, l)
			}
		}
		return len(free) > 0
	})
	if err != nil {
		return err
	}
	l := free[pl.rng.IntN(len(free))]
	l.submit(s)
	if pl.life.Depth <= 1 {
		return pl.runUntil(func() bool { return !l.active })
	}
	for range pl.rng.IntN(4) {
		pl.turn()
	}
	return nil
}

func (l *queue) submit(s Step) {
	pl, d := l.v.pl, l.v.o.Disk
	l.req = cow.Request{Op: s.Op.Op, FUA: s.Op.FUA}
	l.what, l.ended, l.at, l.afterFailure = s.String(), nil, pl.m.Len(), l.v.failed
	id := cowtest.Zeros
	switch s.Op.Op {
	case cow.OpWrite:
		r := s.Op.Ranges[0]
		id = pl.next
		pl.next++
		buf := make([]byte, r.Length)
		cowtest.Stamp(buf, r.Offset/cowtest.SectorSize, id)
		l.req.Offset, l.req.Length, l.req.Data = r.Offset, r.Length, [][]byte{buf}
	case cow.OpDiscard, cow.OpWriteZeroes:
		l.req.Ranges = s.Op.Ranges
	}
	if s.Op.Op != cow.OpFlush {
		var n *note
		n, l.ended = began(l.v.name, id, l.what, s.Op.Effect(d.Size(), int64(d.BlockSize())))
		pl.m.Mark(n)
	}
	l.active, l.submitted = true, false
	go func() { l.ch.Submit(&l.req); l.submitted = true }()
}

// collect takes completed requests.
func (v *served) collect(dead bool) {
	for _, l := range v.queues {
		if !l.active || !l.submitted {
			continue
		}
		if l.out = l.ch.Completed(l.out[:0]); len(l.out) == 0 {
			continue
		}
		l.active = false
		if !dead {
			l.finish()
		}
	}
}

// finish notes the result of a request.
func (l *queue) finish() {
	v, pl, err := l.v, l.v.pl, l.req.Err
	switch {
	case err == nil && l.afterFailure:
		pl.reportBroken(fmt.Errorf("%s succeeded after a failed flush", l.what))
	case errors.Is(err, cow.ErrFailed) && !v.failed:
		v.failed = true
		pl.m.Mark(lost(v.name))
	}
	pl.out.count(l.req.Op.String())
	if l.ended != nil {
		pl.m.Mark(l.ended(err == nil, l.req.FUA))
	} else if err == nil {
		pl.m.Mark(flushed(v.name, l.at))
	}
	if err == nil {
		return
	}
	if pl.causedByFault(err) {
		pl.out.count("requests that failed")
	} else if pl.life.Fault == nil {
		pl.reportBroken(fmt.Errorf("%s: %w", l.what, err))
	}
	pl.out.Errs = append(pl.out.Errs, fmt.Errorf("%s: %w", l.what, err))
}
