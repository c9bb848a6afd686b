package backend

import (
	"fmt"

	"cowblk/cow"
	"cowblk/eventfd"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// ringAddress is the place of a ring in the front-end's address space. The worker keeps it to find
// the ring again when the memory table is replaced.
type ringAddress struct {
	num               uint16
	desc, avail, used uint64
}

func (a ringAddress) mapIn(t *guest.Table) (desc, avail, used []byte, err error) {
	return virtq.MapSplit(t, a.num, a.desc, a.avail, a.used)
}

// newWorker sets up one ring. On success the worker owns q's file descriptors; on failure they are
// closed.
func newWorker(d *Device, q vhost.Queue) (_ *worker, err error) {
	w := &worker{
		dev:   d,
		index: q.Index,
		log:   d.log,
		addr:  ringAddress{q.Num, q.Desc, q.Avail, q.Used}, cacheMark: cacheMark(&q),
		slots: make([]slot, q.Num),
		done:  make([]*cow.Request, 0, batchSize),
		call:  q.Call,
		errfd: q.Err,
		wait:  waiter{wake: -1, kick: q.Kick},
		ended: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start queue %d: %w", q.Index, err)
			w.release()
		}
	}()
	desc, avail, used, err := w.addr.mapIn(q.Memory)
	if err != nil {
		return nil, err
	}
	// NewSplit reads the ring's used index and the in-flight region.
	err = touch(func() (err error) {
		w.ring, err = virtq.NewSplit(virtq.SplitConfig{
			Num: q.Num, Desc: desc, Avail: avail, Used: used, Base: q.Base,
			EventIdx: q.Features&virtq.FeatureEventIdx != 0,
			Indirect: q.Features&virtq.FeatureIndirectDesc != 0,
			Inflight: q.Inflight, InflightNum: q.InflightNum,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	w.parser = blk.NewParser(&d.config, q.Features)
	if w.ch, err = d.Disk().NewAsyncChannel(); err != nil {
		return nil, err
	}
	wait, err := newWaiter(q.Kick, w.ch.FD())
	if err != nil {
		return nil, err
	}
	w.wait = wait
	q.Memory.Acquire()
	w.mem = &pin{table: q.Memory}
	return w, nil
}

// release releases what the worker owns. Its goroutine has ended or was never started.
func (w *worker) release() {
	w.wait.close()
	eventfd.Close(w.call)
	eventfd.Close(w.errfd)
	if w.ch != nil {
		w.ch.Close()
	}
	if w.mem != nil {
		w.mem.table.Release()
	}
}
