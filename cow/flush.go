package cow

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// flusher makes a disk's writes durable, in rounds, on one goroutine: started by Open, ended by
// stop or end. All map writes, map syncs and seals of the disk happen on it, so they need no
// further order among themselves.
//
// One round serves every request that waited when it began. A request that arrives during a round
// waits for the next: writes that completed before it may have come too late for the round under
// way.
type flusher struct {
	disk     *Disk
	notifier *notifier // work has arrived
	ended    chan struct{}
	raw      vfs.File // of a disk without layers; nil otherwise
	rounds   atomic.Uint64
	pages    []layer.DirtyPage // of the round under way

	interval time.Duration // of background rounds, see background.go; 0 or less: none
	failing  bool          // the last background round failed, which was logged

	mu           sync.Mutex
	waiting      requestList
	sealJobs     []sealJob
	roundWaiters []chan<- error // callers of flushNow; they get the outcome of the next round
	unsealed     []*layer.Layer // oldest first, then the head; replaced, never changed in place
	stopping     bool
	timer        *time.Timer // of background rounds; nil: not needed yet
	timerRunning bool        // timer runs, or has expired and its round has not begun
	timerExpired bool        // the next round is the timer's
}

// sealJob asks for the last flush and the seal of a former head that no write in flight can reach
// any more.
type sealJob struct {
	layer *layer.Layer
	done  chan<- error
}

// maxKeptPages bounds the number of DirtyPages kept between rounds: 4 MiB of memory.
const maxKeptPages = 1024

// yieldEvery bounds the time between two yields. The flusher sleeps in the kernel only. Without
// yields Go's scheduler would count it as a goroutine that never yields and take its P away at
// every sleep.
const yieldEvery = 5 * time.Millisecond

func startFlusher(d *Disk, unsealed []*layer.Layer, raw vfs.File,
	interval time.Duration) (*flusher, error) {
	n, err := newNotifier(d.sources.fs)
	if err != nil {
		return nil, fmt.Errorf("start to flush: %w", err)
	}
	f := &flusher{disk: d, notifier: n, ended: make(chan struct{}), unsealed: unsealed, raw: raw,
		interval: interval}
	go f.run()
	return f, nil
}

// add queues a flush, or a write that waits for one. It completes through its channel.
func (f *flusher) add(r *Request) {
	f.mu.Lock()
	f.waiting.push(r)
	f.mu.Unlock()
	f.notifier.notify()
}

// flushNow waits for a round that begins after the call and returns its outcome; ErrClosed once the
// flusher is being stopped.
func (f *flusher) flushNow() error {
	done := make(chan error, 1)
	f.mu.Lock()
	if f.stopping {
		f.mu.Unlock()
		return ErrClosed
	}
	f.roundWaiters = append(f.roundWaiters, done)
	f.mu.Unlock()
	f.notifier.notify()
	return <-done
}

// stop ends the goroutine, then runs a last round and returns its outcome. Nothing is added any
// more.
func (f *flusher) stop() error {
	f.end()
	return f.round()
}

// end ends the goroutine without a last round.
func (f *flusher) end() {
	f.mu.Lock()
	f.stopping = true
	f.stopTimer()
	f.mu.Unlock()
	f.notifier.notify()
	<-f.ended
	f.notifier.close()
}

func (f *flusher) run() {
	defer close(f.ended)
	for yielded := time.Now(); ; {
		if now := time.Now(); now.Sub(yielded) >= yieldEvery {
			yielded = now
			runtime.Gosched()
		}
		f.notifier.wait()
		for {
			f.mu.Lock()
			batch, sealJobs, roundWaiters, timerExpired := f.waiting.take(), f.sealJobs,
				f.roundWaiters, f.timerExpired
			f.sealJobs, f.roundWaiters, f.timerExpired = nil, nil, false
			stopping := f.stopping
			f.mu.Unlock()
			if batch.head == nil && sealJobs == nil && roundWaiters == nil && !timerExpired {
				if stopping {
					return
				}
				break
			}
			if batch.head != nil || roundWaiters != nil || timerExpired {
				err := f.round()
				f.endRound(err, timerExpired)
				for _, done := range roundWaiters {
					done <- err
				}
				for r := batch.pop(); r != nil; r = batch.pop() {
					r.Err = err
					r.complete()
				}
			}
			for _, s := range sealJobs {
				s.done <- f.seal(s.layer)
			}
		}
	}
}

// round makes durable what has completed on the head and on former heads that are not sealed yet.
//
// The list of layers is loaded last: the write behind a channel's mark, or behind unshared.added,
// may be on a head that is newer than the begin of the round.
func (f *flusher) round() error {
	if err := f.disk.failure(); err != nil {
		return err
	}
	f.rounds.Add(1)
	f.clearUnflushed()
	added := f.disk.unshared.added.Load()
	f.mu.Lock()
	layers := f.unsealed
	f.mu.Unlock()
	if f.raw != nil {
		if err := f.raw.Datasync(); err != nil {
			return f.disk.fail(err)
		}
	}
	for _, l := range layers {
		if err := f.flushLayer(l); err != nil {
			return err
		}
	}
	f.disk.unshared.flushed.Store(added)
	return nil
}

// retryNoSpace runs f, which loses nothing when there is no space, and again as long as
// Options.OnNoSpace says so.
func (d *Disk) retryNoSpace(f func() error) error {
	for {
		err := f()
		if err == nil || d.onNoSpace == nil || !NoSpace(err) ||
			!d.onNoSpace(err, d.closing.Load()) {
			return err
		}
	}
}

// flushLayer is steps (a) to (d) of "What is durable when" in doc.go.
//
// After a failed sync the kernel may have dropped dirty pages, and a later sync would succeed
// without them: the disk fails. A failed write of the map (no space, say) loses nothing: the pages
// are dirty again, and the next round repeats them.
func (f *flusher) flushLayer(l *layer.Layer) error {
	err := f.disk.retryNoSpace(func() (err error) {
		f.pages, err = l.Flush(f.pages)
		if err != nil && l.Err() != nil {
			return f.disk.fail(err) // a sync was what failed
		}
		return err
	})
	if cap(f.pages) > maxKeptPages {
		f.pages = nil
	}
	return err
}

// seal flushes a former head a last time and seals it. Until it succeeds, every round covers the
// layer.
func (f *flusher) seal(l *layer.Layer) error {
	if err := f.disk.failure(); err != nil {
		return err
	}
	if err := f.flushLayer(l); err != nil {
		return err
	}
	err := f.disk.retryNoSpace(func() error {
		err := l.Seal(time.Now())
		if err != nil && l.Err() != nil { // a sync was what failed
			return f.disk.fail(err)
		}
		return err
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	rest := make([]*layer.Layer, 0, len(f.unsealed))
	for _, u := range f.unsealed {
		if u != l {
			rest = append(rest, u)
		}
	}
	f.unsealed = rest
	return nil
}

// sealLayer seals l on the flusher's goroutine and waits for it.
func (f *flusher) sealLayer(l *layer.Layer) error {
	done := make(chan error, 1)
	f.mu.Lock()
	f.sealJobs = append(f.sealJobs, sealJob{l, done})
	f.mu.Unlock()
	f.notifier.notify()
	return <-done
}

// addHead adds a new head, which the next round covers. No write to it can complete before, for it
// is not in a view yet.
func (f *flusher) addHead(l *layer.Layer) {
	f.mu.Lock()
	f.unsealed = append(f.unsealed[:len(f.unsealed):len(f.unsealed)], l)
	f.mu.Unlock()
}

func (f *flusher) unsealedCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.unsealed)
}
