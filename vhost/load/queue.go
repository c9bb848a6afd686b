package load

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"cowblk/vhost/frontend"
)

// queue loads one ring. All fields except stop belong to the goroutine of run.
type queue struct {
	driver    *frontend.Driver
	pattern   pattern
	blockSize int
	fsync     int // Options.FsyncEvery
	stop      *atomic.Bool
	backend   *process // measured by this queue; nil: by another one

	slots []requester
	done  []frontend.Completion
	phase phase
	// Nanoseconds since origin: the next change of phase, and the two.
	origin           time.Time
	edge, start, end int64

	tally
	cpu, backendCPU time.Duration // while counting
	last            int64         // of the last completion
	exhausted       bool          // the pattern has ended
	broken          error
}

// requester has one request in flight; there are QueueDepth of them.
type requester struct {
	op      frontend.Op
	started int64
	writes  int // since its last flush
}

// phase is the state of a load.
type phase int

const (
	warming  phase = iota
	counting       // from start to end
	draining       // no new requests
)

// tally holds the counts of one queue, or several.
type tally struct {
	readHist, writeHist, flushHist *hdrhistogram.Histogram
	nReads, nWrites                uint64
	nFlushes, nErrors              uint64
}

func newTally() tally {
	return tally{readHist: newHistogram(), writeHist: newHistogram(), flushHist: newHistogram()}
}

func (t *tally) add(x *tally) {
	t.readHist.Merge(x.readHist)
	t.writeHist.Merge(x.writeHist)
	t.flushHist.Merge(x.flushHist)
	t.nReads, t.nWrites = t.nReads+x.nReads, t.nWrites+x.nWrites
	t.nFlushes, t.nErrors = t.nFlushes+x.nFlushes, t.nErrors+x.nErrors
}

func newQueue(d *frontend.Driver, o Options, p pattern, stop *atomic.Bool) *queue {
	q := &queue{
		driver: d, pattern: p, blockSize: o.BlockSize, fsync: o.FsyncEvery, stop: stop,
		slots: make([]requester, o.QueueDepth), done: make([]frontend.Completion, 0, d.Slots()),
		start: int64(o.Warmup), end: math.MaxInt64, tally: newTally(),
	}
	if o.Duration > 0 {
		q.end = int64(o.Warmup + o.Duration)
	}
	// Random data, which does not compress and has no zeros; always the same.
	r := newRandom(o.Seed, math.MaxUint32)
	for i := range q.slots {
		buf := d.Buffer(i)[:o.BlockSize]
		for j := 0; j+8 <= len(buf); j += 8 {
			binary.LittleEndian.PutUint64(buf[j:], r.next())
		}
	}
	return q
}

// run loads the ring until its time is over, the pattern ends, stop is set or the back-end fails.
// The goroutine keeps its thread.
func (q *queue) run(origin time.Time) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	q.origin, q.edge = origin, q.start
	now := q.now()
	if err := q.setPhase(now); err != nil {
		return err
	}
	for i := range q.slots {
		q.submit(i, now)
	}
	for q.driver.InFlight() > 0 {
		if err := q.driver.Kick(); err != nil {
			return err
		}
		if err := q.driver.Wait(); err != nil {
			return err
		}
		q.done = q.driver.Poll(q.done[:0])
		now = q.now()
		if now >= q.edge || q.phase != draining && q.stop.Load() {
			if err := q.setPhase(now); err != nil {
				return err
			}
		}
		for _, c := range q.done {
			q.account(c, now)
			q.submit(c.ID, now)
		}
		if q.broken != nil {
			return q.broken
		}
		q.last = now
	}
	if err := q.driver.Err(); err != nil {
		return err
	}
	if q.phase == counting { // the pattern has ended
		return q.setPhase(q.end)
	}
	return nil
}

func (q *queue) now() int64 { return int64(time.Since(q.origin)) }

// setPhase sets the phase at time now.
func (q *queue) setPhase(now int64) error {
	if q.phase == warming && now >= q.start {
		q.phase, q.edge = counting, q.end
		if err := q.addCPU(-1); err != nil {
			return err
		}
	}
	over := now >= q.end || q.stop.Load()
	if !over || q.phase == draining {
		return nil
	}
	counted := q.phase == counting
	q.phase, q.edge = draining, math.MaxInt64
	q.end = min(q.end, max(now, q.start))
	if counted {
		return q.addCPU(1)
	}
	return nil
}

// addCPU adds (or subtracts) the CPU time used so far.
func (q *queue) addCPU(sign time.Duration) error {
	t, err := threadTime()
	if err != nil {
		return err
	}
	q.cpu += sign * t
	if q.backend != nil {
		q.backendCPU += sign * q.backend.cpuTime()
	}
	return nil
}

// account counts a completed request. Those in flight at the end only count for the latencies.
func (q *queue) account(c frontend.Completion, now int64) {
	if q.phase == warming {
		return
	}
	s := &q.slots[c.ID]
	hist, n := q.readHist, &q.nReads
	switch s.op {
	case frontend.OpWrite:
		hist, n = q.writeHist, &q.nWrites
	case frontend.OpFlush:
		hist, n = q.flushHist, &q.nFlushes
	}
	// Cannot fail: the value is within bounds.
	_ = hist.RecordValue(min(max(now-s.started, minLatency), maxLatency))
	if c.Status != frontend.StatusOK {
		q.nErrors++
	}
	if q.phase == counting {
		*n++
	}
}

// submit makes a requester's next request, if there is one.
func (q *queue) submit(slot int, now int64) {
	if q.phase == draining {
		return
	}
	s := &q.slots[slot]
	s.started = now
	n := q.blockSize
	var off int64
	if q.fsync > 0 && s.writes == q.fsync {
		s.op, s.writes, n = frontend.OpFlush, 0, 0
	} else {
		var ok bool
		if s.op, off, ok = q.pattern.take(); !ok {
			q.exhausted = true
			return
		}
		if s.op == frontend.OpWrite {
			s.writes++
		}
	}
	if err := q.driver.Submit(slot, s.op, off, n); err != nil {
		q.broken = fmt.Errorf("slot %d: %w", slot, err)
	}
}
