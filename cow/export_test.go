package cow

import (
	"errors"
	"sync/atomic"

	"cowblk/cow/aio"
)

// DisableIOUring makes the disk's channels work as where io_uring is not available. It returns the
// function that counts the attempts to make an engine.
func (d *Disk) DisableIOUring() (attempts func() int64) {
	var n atomic.Int64
	d.newEngine = func(int, int) (*aio.Engine, error) {
		n.Add(1)
		return nil, errors.ErrUnsupported
	}
	return n.Load
}

// BeginSwap is the first half of Swap, SwapAll the second.
func BeginSwap(promotions ...*Promotion) (ok bool) {
	ok = true
	for _, p := range promotions {
		ok = p.beginSwap() && ok
	}
	return ok
}

func SwapAll(promotions ...*Promotion) { swapAll(promotions) }

// HoldSwap keeps the disk from being swapped or gated until release is called.
func (d *Disk) HoldSwap() (release func()) {
	d.mu.Lock()
	return d.mu.Unlock
}

// ViewChanged reports whether a view other than the first is in place.
func (d *Disk) ViewChanged() bool {
	v := d.view.Load()
	return v.seq > 1 || v.gate != nil
}

// QueuedFlushes returns the number of flushes that wait for a round to begin.
func (d *Disk) QueuedFlushes() int {
	d.flusher.mu.Lock()
	defer d.flusher.mu.Unlock()
	n := 0
	for r := d.flusher.waiting.head; r != nil; r = r.next {
		n++
	}
	return n
}
