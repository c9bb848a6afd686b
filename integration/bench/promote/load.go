package promote

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"cowblk/vhost/frontend"
)

const requestSize = 4096

// sample is one request: when it became visible to the device and when it completed, in nanoseconds
// of one clock.
type sample struct{ start, end int64 }

// loader keeps requests in flight on one queue, from a goroutine of its own.
type loader struct {
	driver *frontend.Driver
	qd     int
	start  int64 // bytes
	blocks int64
	clock  time.Time

	samples []sample
	asked   atomic.Pointer[chan []sample]
	bulk    atomic.Pointer[bulk]
	stop    atomic.Bool
	ended   chan error
}

// bulk asks the loader to write bytes sequentially before it continues the load.
type bulk struct {
	bytes int64
	done  chan struct{}
}

func startLoad(d *frontend.Driver, qd int, diskSize, span int64) *loader {
	span = min(span, diskSize)
	l := &loader{
		driver: d, qd: qd, start: (diskSize - span) / 2 &^ (1<<20 - 1), blocks: span / requestSize,
		clock: time.Now(), ended: make(chan error, 1), samples: make([]sample, 0, 1<<20),
	}
	go func() { l.ended <- l.run() }()
	return l
}

func (l *loader) now() int64 { return int64(time.Since(l.clock)) }

func (l *loader) run() error {
	runtime.LockOSThread()
	starts := make([]int64, l.qd)
	for i := range starts {
		if err := l.submit(i, starts); err != nil {
			return err
		}
	}
	done := make([]frontend.Completion, 0, 256)
	for l.driver.InFlight() > 0 {
		if err := l.driver.Kick(); err != nil {
			return err
		}
		if err := l.driver.Wait(); err != nil {
			return err
		}
		done = l.driver.Poll(done[:0])
		now := l.now()
		for _, c := range done {
			if c.Status != frontend.StatusOK {
				return fmt.Errorf("a request completed with status %d", c.Status)
			}
			l.samples = append(l.samples, sample{starts[c.ID], now})
			if l.stop.Load() || l.bulk.Load() != nil {
				continue
			}
			if err := l.submit(c.ID, starts); err != nil {
				return err
			}
		}
		if ask := l.asked.Swap(nil); ask != nil {
			*ask <- append([]sample(nil), l.samples...)
			l.samples = l.samples[:0]
		}
		if b := l.bulk.Load(); b != nil && l.driver.InFlight() == 0 {
			if err := l.fill(b.bytes); err != nil {
				return err
			}
			l.bulk.Store(nil)
			close(b.done)
			for i := range starts {
				if err := l.submit(i, starts); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (l *loader) submit(slot int, starts []int64) error {
	op := frontend.OpRead
	if rand.Uint32()&1 == 0 {
		op = frontend.OpWrite
	}
	starts[slot] = l.now()
	return l.driver.Submit(slot, op, l.start+rand.Int64N(l.blocks)*requestSize, requestSize)
}

// fill writes bytes from the start of the disk.
func (l *loader) fill(bytes int64) error {
	buf := make([]byte, 1<<20)
	for at := int64(0); at < min(bytes, l.start); at += int64(len(buf)) {
		if _, err := l.driver.WriteAt(buf, at); err != nil {
			return err
		}
	}
	return nil
}

// takeSamples returns the requests that completed since the last call. Requests in flight at the
// time of the call may be missing; the next call returns them.
func (l *loader) takeSamples() []sample {
	ask := make(chan []sample, 1)
	l.asked.Store(&ask)
	return <-ask
}

// dirty writes bytes and returns when the load runs again.
func (l *loader) dirty(bytes int64) {
	if bytes == 0 {
		return
	}
	b := &bulk{bytes: bytes, done: make(chan struct{})}
	l.bulk.Store(b)
	<-b.done
}

func (l *loader) finish() error {
	l.stop.Store(true)
	return <-l.ended
}
