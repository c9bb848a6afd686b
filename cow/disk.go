package cow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"cowblk/cow/aio"
	"cowblk/cow/index"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Disk is an open stack. Its methods may be called from any goroutine; requests of guests go
// through Channels.
type Disk struct {
	// Fixed at open, or changed so rarely that every CPU may keep them in its cache.
	size          int64 // bytes
	blockSize     int64
	shift         uint   // log2 of blockSize
	blocks        uint64 // of the disk; the last one may be partial
	baseBlocks    uint64 // leading blocks of the disk that the base reaches
	readOnly      bool
	loseUnflushed bool // Options.LoseUnflushed
	zeroBlock     []byte
	index         *index.Index
	log           *slog.Logger
	onFailure     atomic.Pointer[func(error)]
	onNoSpace     func(err error, closing bool) bool // Options.OnNoSpace; nil: none
	failed        atomic.Pointer[error]              // see fail
	view          atomic.Pointer[view]
	channels      atomic.Pointer[[]*Channel] // replaced under mu
	flusher       *flusher                   // nil when read-only
	threadPool    *threadPool
	newEngine     func(depth, eventFD int) (*aio.Engine, error) // aio.New; tests replace it
	// it was logged that newEngine fails
	engineWarned  atomic.Bool
	unshared      unsharedBits
	synchronizing struct {
		waiting atomic.Int32
		mu      sync.Mutex
		cond    sync.Cond
	}

	_        [64]byte // the fields below are written by first writes
	guard    guard
	counters struct{ firstWrites, copyUps atomic.Uint64 }
	_        [64]byte

	mu              sync.Mutex // guards everything below, and the swap of view and channels
	base            vfs.File
	layers          []*layer.Layer // owner i+1
	sources         sources
	prepared        *Promotion
	backgroundTasks sync.WaitGroup // one per promotion and per AddChecksums under way
	closing         atomic.Bool    // Finish or Close was called
	lifetime        context.Context
	endLifetime     context.CancelFunc // called when the disk is closed
	idleSync        []*syncChannel
	openChannels    int // channels of NewChannel and NewAsyncChannel
	closed          bool
}

// Size returns the disk's size in bytes, a multiple of 512.
func (d *Disk) Size() int64 { return d.size }

// BlockSize returns the unit of ownership in bytes, a power of two from 512 to 65536.
func (d *Disk) BlockSize() int { return int(d.blockSize) }

// ReadOnly reports whether the disk was opened without a writable head. It does not change when a
// failed flush makes the disk read-only: see Stats.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// Depth returns the number of layers, including the head and not the base.
func (d *Disk) Depth() int { return int(d.view.Load().top) }

// Layers returns the headers of the stack's layers, oldest first.
func (d *Disk) Layers() []layer.Header {
	d.mu.Lock()
	defer d.mu.Unlock()
	headers := make([]layer.Header, len(d.layers))
	for i, l := range d.layers {
		headers[i] = l.Header()
	}
	return headers
}

// Stats is a snapshot of a disk's state, and of its counters since the open.
type Stats struct {
	Depth      int
	HeadBlocks uint64 // owned by the head
	IndexBytes int64  // memory of the index
	// MappingBytes is the memory of page tables and residency marks of the mapped files, at most.
	// The pages themselves are the page cache's.
	MappingBytes int64
	FirstWrites  uint64 // blocks that a head became the owner of
	CopyUps      uint64 // partly written blocks completed from older layers
	GuardWaits   uint64 // first writes that waited for another of the same blocks
	FlushRounds  uint64
	Unsealed     int   // former heads whose sealing is not finished
	Failed       error // what made the disk read-only, or nil
}

// Stats returns the current figures.
func (d *Disk) Stats() Stats {
	v := d.view.Load()
	s := Stats{
		Depth:       int(v.top),
		IndexBytes:  d.index.Memory(),
		FirstWrites: d.counters.firstWrites.Load(),
		CopyUps:     d.counters.copyUps.Load(),
		GuardWaits:  d.guard.waitCount(),
		Failed:      d.failure(),
	}
	if v.bitmap != nil {
		s.HeadBlocks = v.bitmap.Count()
	}
	for i := range v.sources {
		if m := v.sources[i].mapping; m != nil {
			s.MappingBytes += m.Memory()
		}
	}
	if d.flusher != nil {
		s.FlushRounds = d.flusher.rounds.Load()
		s.Unsealed = max(0, d.flusher.unsealedCount()-1)
	}
	return s
}

// Close waits for promotions to finish sealing, flushes, marks the head clean and closes every
// file. All channels must be closed and no Swap under way: with ErrInFlight or ErrPromoting nothing
// happens. After any other error the disk is closed nevertheless.
func (d *Disk) Close() error {
	closeErr, err := d.beginShutdown()
	if err != nil {
		return err
	}
	d.closing.Store(true)
	errs := []error{closeErr}
	if d.flusher != nil {
		errs = append(errs, d.flusher.stop())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	errs = append(errs, d.view.Load().close())
	errs = append(errs, closeFiles(d.base, d.layers, d.failure() != nil, d.retryNoSpace))
	d.index.Close()
	return errors.Join(errs...)
}

// Finish is the last flush before Close. It may use all of the reserved space, see
// Options.OnNoSpace, and may be repeated. It does nothing on a read-only disk.
func (d *Disk) Finish() error {
	d.BeginClose()
	return d.Flush()
}

// BeginClose lets all flushes from now on use the reserved space, as Finish does, for a caller that
// flushes through a channel of its own.
func (d *Disk) BeginClose() { d.closing.Store(true) }

// KeepsUnflushed reports whether the next Open in this run of the kernel finds everything that
// guests have written, flushed or not, if this process ends without writing the map. It does with a
// shared map, or if no write completes before its bit is durable.
func (d *Disk) KeepsUnflushed() bool {
	b := d.view.Load().bitmap
	return b == nil || b.Shared() || !d.loseUnflushed
}

// beginShutdown refuses new work and waits for all goroutines but the flusher. After err nothing
// has happened; closeErr is what failed later.
func (d *Disk) beginShutdown() (closeErr, err error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, ErrClosed
	}
	if n := d.openChannels - len(d.idleSync); n > 0 {
		d.mu.Unlock()
		return nil, fmt.Errorf("close disk: %d channels are open: %w", n, ErrInFlight)
	}
	if p := d.prepared; p != nil {
		if p.swapping {
			d.mu.Unlock()
			return nil, fmt.Errorf("close disk: %w", ErrPromoting)
		}
		p.cancelLocked()
	}
	d.closed = true
	d.endLifetime()
	idleSync := d.idleSync
	d.idleSync = nil
	d.mu.Unlock()
	var idleErrs []error
	for _, s := range idleSync {
		idleErrs = append(idleErrs, s.ch.Close())
	}
	d.threadPool.stop()
	d.backgroundTasks.Wait()
	return errors.Join(idleErrs...), nil
}

// closeFiles closes the layers from the head down, then the base (nil: none). The layers of a
// failed disk are closed without a write: they must not be marked clean. retryNoSpace runs what may
// need space (nil: it runs once).
func closeFiles(base vfs.File, layers []*layer.Layer, failed bool,
	retryNoSpace func(func() error) error) error {
	var errs []error
	for i := len(layers) - 1; i >= 0; i-- {
		if l := layers[i]; !failed {
			if retryNoSpace == nil {
				errs = append(errs, l.Finish())
			} else {
				errs = append(errs, retryNoSpace(l.Finish))
			}
		}
		errs = append(errs, layers[i].Abandon())
	}
	if base != nil {
		errs = append(errs, base.Close())
	}
	return errors.Join(errs...)
}

// fail turns the disk read-only until it is opened again. Only the first cause is kept.
func (d *Disk) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	if !d.failed.CompareAndSwap(nil, &err) {
		return d.failure()
	}
	d.log.Error("a flush failed: the disk is read-only until it is opened again", "err", err)
	if f := d.onFailure.Load(); f != nil {
		(*f)(err)
	}
	return err
}

// NotifyFailure replaces Options.OnFailure, for a caller that receives an open disk. It is not
// called for a failure that has happened before.
func (d *Disk) NotifyFailure(f func(error)) { d.onFailure.Store(&f) }

func (d *Disk) failure() error {
	if p := d.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// addChannel adds c to the channels whose pins count. n, 1 or 0, is the number of channels that it
// adds to those that keep the disk from being closed.
func (d *Disk) addChannel(c *Channel, n int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return ErrClosed
	}
	old := *d.channels.Load()
	list := append(old[:len(old):len(old)], c)
	d.channels.Store(&list)
	d.openChannels += n
	return nil
}

// dropChannel undoes addChannel with the same c and n. It reports whether c was still in the list.
func (d *Disk) dropChannel(c *Channel, n int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := *d.channels.Load()
	list := make([]*Channel, 0, len(old))
	for _, o := range old {
		if o != c {
			list = append(list, o)
		}
	}
	if len(list) == len(old) {
		return false
	}
	d.channels.Store(&list)
	d.openChannels -= n
	return true
}
