package crash

import (
	"context"
	"errors"
	"fmt"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/store"
)

// openDisks counts the disks of a promotion that are open. A script means all of them or none, but
// an open may have been refused: see mayRefuse.
func (pl *player) openDisks(s Step) (open int, all bool) {
	list := names(s.Name)
	for _, name := range list {
		if pl.open[name] != nil {
			open++
		}
	}
	return open, open == len(list)
}

// promoteLive begins a promotion beside the guests' requests. Other steps that change the store
// wait for its end.
func (pl *player) promoteLive(s Step) error {
	if err := pl.runUntil(func() bool { return pl.jobs == 0 }); err != nil {
		return err
	}
	pl.m.Mark(changing(s.String(), func(w *world) bool { return w.promote(s) }))
	pl.jobs++
	pl.swapped = false
	if pl.fault > 0 {
		// A goroutine that makes a call without a turn may hold a mutex.
		pl.sched.arm(pl.fault, pl.errno(), false, false)
		pl.fault = 0
	}
	go func() {
		err := pl.promotion(s)
		pl.jobs--
		if err == nil {
			return
		}
		pl.out.Errs = append(pl.out.Errs, fmt.Errorf("%s: %w", s, err))
		if pl.causedByFault(err) {
			pl.faults++
			pl.out.count("promote, live, failed")
			return
		}
		if pl.life.Fault == nil && !errors.Is(err, errKilled) {
			pl.reportBroken(fmt.Errorf("%s: %w", s, err))
		}
	}()
	if pl.life.Depth <= 1 {
		// Up to the swap, or a bit further: the rest runs beside the next requests.
		for range pl.rng.IntN(60) {
			pl.turn()
		}
	}
	return nil
}

// sum begins to add data checksums to sealed layers, beside the guests' requests.
func (pl *player) sum(s Step) error {
	if err := pl.runUntil(func() bool { return pl.jobs == 0 }); err != nil {
		return err
	}
	v := pl.open[s.Name]
	if v == nil {
		return nil
	}
	p := pl.p
	pl.jobs++
	go func() {
		err := v.o.Disk.AddChecksums(context.Background(), nil)
		pl.jobs--
		if err == nil {
			pl.out.count("sum")
		}
		if err == nil || pl.p != p || pl.sched.released() {
			return
		}
		if pl.causedByFault(err) {
			return
		}
		pl.out.Errs = append(pl.out.Errs, fmt.Errorf("%s: %w", s, err))
		if pl.life.Fault == nil {
			pl.reportBroken(fmt.Errorf("%s: %w", s, err))
		}
	}()
	return nil
}

// errKilled: the process was killed in a promotion.
var errKilled = errors.New("killed")

// promotion does the same as the daemon.
func (pl *player) promotion(s Step) error {
	p, list := pl.p, names(s.Name)
	orKilled := func(err error) error {
		if pl.p != p || pl.sched.released() {
			return errors.Join(err, errKilled)
		}
		return err
	}
	var before []*store.Manifest
	var disks []*served
	for _, name := range list {
		disks = append(disks, pl.open[name])
		before = append(before, pl.open[name].o.Manifest)
	}
	pending, err := pl.s.PreparePromotion(context.Background(), before, s.Arg)
	if err != nil {
		if pl.refused(s, err) {
			pl.m.Mark(refused(s.String()))
			return nil
		}
		if pl.causedByFault(err) {
			pl.m.Mark(refused(s.String())) // nothing names the new heads
		} else {
			pl.m.Mark(unsure(s.String()))
		}
		return orKilled(err)
	}
	for i, h := range pending.Heads() {
		old := disks[i].o.Disk.Layers()
		if old[len(old)-1].Generation != 0 && !h.Bitmap().Shared() {
			pl.reportBroken(fmt.Errorf(
				"%s: disk %s: the head has a shared map, the new head has none, but the promotion continues", s, list[i]))
		}
	}
	var promotions []*cow.Promotion
	abandon := func(err error) error {
		for _, p := range promotions {
			p.Cancel()
		}
		pending.Close(false)
		pl.m.Mark(unsure(s.String()))
		return orKilled(err)
	}
	for i, v := range disks {
		x, err := v.o.Disk.Prepare(pending.Heads()[i])
		if err != nil {
			return abandon(err)
		}
		promotions = append(promotions, x)
	}
	if err := pending.Commit(); err != nil {
		return abandon(err)
	}
	pl.m.Mark(changed(s.String()))
	if err := cow.Swap(promotions...); err != nil {
		return errors.Join(abandon(err), pending.Revert())
	}
	pl.swapped = true
	for i, v := range disks {
		pl.m.Mark(swapped(list[i]))
		v.o.Manifest = pending.Manifests()[i]
	}
	pending.Close(true)
	for _, x := range promotions {
		<-x.Done()
		err = errors.Join(err, x.Err())
	}
	if err != nil {
		return orKilled(err)
	}
	pl.out.count("promote, live")
	return orKilled(pl.readTags(s))
}

// readTags fixes the content of tags, which are sealed now. It reads as another process does.
func (pl *player) readTags(s Step) error {
	if pl.sched.released() {
		return nil
	}
	other, err := openStore(pl.m.Process(nil))
	if err != nil {
		return err
	}
	for _, name := range names(s.Name) {
		p, err := readTag(other, name, s.Arg, pl.readerOptions())
		if pl.faults > 0 && errors.Is(err, layer.ErrInUse) {
			continue // a call has failed while an earlier head was sealed: the next open seals it
		}
		if pl.refusedForLock(Step{Verb: "peek", Name: name}, err) {
			continue
		}
		if err != nil {
			return err
		}
		pl.m.Mark(sealed(name, s.Arg, p))
	}
	return nil
}
