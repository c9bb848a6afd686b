package cowtest

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"cowblk/cow"
	"cowblk/eventfd"
)

// Run performs each script on a channel and goroutine of its own, all at once, and checks every
// read against the model. Go returns the first error when all operations have completed.
type Run struct {
	Disk    *cow.Disk
	Model   *Model
	Scripts [][]Op
	Seed    uint64 // of the random split of buffers
	Depth   int    // operations in flight per channel; 0: 8
	Async   bool   // asynchronous channels

	// Progress counts the operations submitted so far.
	Progress atomic.Int64

	stop atomic.Bool
}

// Go runs the scripts.
func (r *Run) Go() error {
	errs := make([]error, len(r.Scripts))
	var wg sync.WaitGroup
	for i := range r.Scripts {
		wg.Go(func() {
			if errs[i] = r.channel(i); errs[i] != nil {
				r.stop.Store(true)
			}
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("channel %d: %w", i, err)
		}
	}
	return nil
}

// slot is one operation in flight.
type slot struct {
	req   cow.Request
	op    Op
	buf   []byte
	write *Write
	start uint64 // of a read
}

type runner struct {
	*Run
	ch    *cow.Channel
	rng   *rand.Rand
	slots []slot
	free  []int
	out   []*cow.Request
}

func (r *Run) channel(i int) (err error) {
	open := r.Disk.NewChannel
	if r.Async {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		open = r.Disk.NewAsyncChannel
	}
	ch, err := open()
	if err != nil {
		return err
	}
	depth := r.Depth
	if depth == 0 {
		depth = 8
	}
	x := &runner{Run: r, ch: ch, rng: rand.New(rand.NewPCG(r.Seed, uint64(i))),
		slots: make([]slot, depth), out: make([]*cow.Request, 0, depth)}
	for s := range x.slots {
		x.slots[s].buf = make([]byte, MaxLength)
		x.free = append(x.free, s)
	}
	defer func() {
		for ch.InFlight() > 0 {
			if e := x.wait(); err == nil {
				err = e
			}
		}
		if e := ch.Close(); err == nil {
			err = e
		}
	}()
	for n, op := range r.Scripts[i] {
		if r.stop.Load() {
			return nil
		}
		for len(x.free) == 0 {
			if err := x.wait(); err != nil {
				return err
			}
		}
		x.submit(op)
		r.Progress.Add(1)
		if err := x.collect(); err != nil {
			return fmt.Errorf("operation %d: %w", n, err)
		}
	}
	return nil
}

func (x *runner) submit(op Op) {
	i := x.free[len(x.free)-1]
	x.free = x.free[:len(x.free)-1]
	s := &x.slots[i]
	s.op, s.write = op, nil
	s.req = cow.Request{Op: op.Op, FUA: op.FUA, Slot: i}
	if op.Op == cow.OpRead || op.Op == cow.OpWrite {
		s.req.Offset, s.req.Length = op.Ranges[0].Offset, op.Ranges[0].Length
		s.req.Data = x.split(s.buf[:s.req.Length])
	} else {
		s.req.Ranges = op.Ranges
	}
	switch op.Op {
	case cow.OpRead:
		s.start = x.Model.Now()
	case cow.OpWrite:
		c := x.Model.NextContent()
		Stamp(s.buf[:s.req.Length], s.req.Offset/SectorSize, c)
		s.write = x.Model.Begin(c, op.String(), [2]int64{s.req.Offset, s.req.Length})
	case cow.OpDiscard, cow.OpWriteZeroes:
		s.write = x.Model.Begin(Zeros, op.String(), op.Effect(x.Disk.Size(),
			int64(x.Disk.BlockSize()))...)
	}
	x.ch.Submit(&s.req)
}

// split divides a buffer into pieces of any length, some of them empty.
func (x *runner) split(p []byte) (segs [][]byte) {
	for len(p) > 0 {
		n := len(p)
		if x.rng.IntN(3) == 0 {
			n = x.rng.IntN(len(p) + 1)
		}
		segs = append(segs, p[:n:n])
		p = p[n:]
	}
	return segs
}

// collect handles all completions.
func (x *runner) collect() error {
	for {
		x.out = x.ch.Completed(x.out[:0])
		for _, r := range x.out {
			s := &x.slots[r.Slot]
			x.free = append(x.free, r.Slot)
			if r.Err != nil {
				return fmt.Errorf("%s: %w", s.op, r.Err)
			}
			if s.write != nil {
				x.Model.End(s.write)
			}
			if r.Op == cow.OpRead {
				if err := x.Model.Check(s.buf[:r.Length], r.Offset, s.start); err != nil {
					return fmt.Errorf("%s: %w", s.op, err)
				}
			}
		}
		if len(x.out) < cap(x.out) {
			return nil
		}
	}
}

// wait blocks until a completion arrives.
func (x *runner) wait() error {
	if err := eventfd.Wait(x.ch.FD()); err != nil {
		return err
	}
	_, _ = eventfd.Drain(x.ch.FD()) // the caller must take the signals of an I/O engine
	return x.collect()
}
