package load

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/vhost/frontend"
)

// ErrTarget reports a back-end that does not support the load.
var ErrTarget = errors.New("the back-end does not do this")

// writebackAt is the offset of the write cache's byte in the configuration space.
const writebackAt = 32

// target is one back-end under load.
type target struct {
	o       Options
	f       *frontend.Frontend
	null    *Null // nil: a real one
	pid     int
	process *process
	queues  []*queue
	stop    *atomic.Bool
	wce     *bool
}

// name returns the socket, or the name of the null back-end.
func (o Options) name() string {
	if o.Null {
		return "null back-end"
	}
	return "back-end " + o.Socket
}

// open connects and sets up the rings. It sends no request.
func open(o Options, stop *atomic.Bool) (*target, error) {
	t := &target{o: o, stop: stop}
	err := t.connect()
	if err == nil {
		err = t.setUp()
	}
	if err != nil {
		return nil, errors.Join(t.describeError(err), t.close())
	}
	return t, nil
}

func (t *target) connect() (err error) {
	ring := uint16(128)
	for int(ring) < 3*t.o.QueueDepth {
		ring *= 2
	}
	buffers := int64(t.o.Queues) * int64(t.o.QueueDepth) * int64(t.o.BlockSize)
	fo := frontend.Options{
		Style: t.o.Style, Queues: t.o.Queues, QueueSize: ring, Slots: t.o.QueueDepth,
		MaxTransfer: t.o.BlockSize,
		Memory:      buffers + int64(t.o.Queues)*(256<<10) + 1<<20, // rings and headers
		Hugepages:   t.o.Hugepages, Poll: t.o.Poll, Timeout: t.o.Timeout,
	}
	if t.o.Null {
		var conn *net.UnixConn
		if t.null, conn, err = startNull(t.o.Queues); err != nil {
			return err
		}
		t.f, err = frontend.New(conn, fo)
		return err
	}
	t.f, err = frontend.Dial(t.o.Socket, fo)
	return err
}

func (t *target) setUp() (err error) {
	if t.pid = t.o.BackendPID; t.pid == 0 {
		if t.pid, err = t.f.PeerPID(); err != nil {
			return err
		}
	}
	t.process = newProcess(t.pid)
	features := t.f.Features()
	if t.o.Writes() && features&frontend.FeatureRO != 0 {
		return fmt.Errorf("%s: the disk is read-only: %w", t.o.RW, ErrTarget)
	}
	if t.o.FsyncEvery > 0 && features&frontend.FeatureFlush == 0 {
		return fmt.Errorf("flushes: FLUSH was not negotiated: %w", ErrTarget)
	}
	if err := t.writeCache(); err != nil {
		return err
	}
	blocks, err := t.area()
	if err != nil {
		return err
	}
	for i := range t.o.Queues {
		d := t.f.Driver(i)
		if d.Slots() < t.o.QueueDepth {
			return fmt.Errorf("queue depth %d: a ring holds %d requests: %w", t.o.QueueDepth,
				d.Slots(), ErrTarget)
		}
		if n := len(d.Buffer(0)); n < t.o.BlockSize {
			return fmt.Errorf("blocks of %d bytes: the back-end takes buffers of %d: %w",
				t.o.BlockSize, n, ErrTarget)
		}
		t.queues = append(t.queues, newQueue(d, t.o, newPattern(t.o, blocks, i), t.stop))
	}
	t.queues[0].backend = t.process
	return nil
}

// writeCache sets the write cache if requested, and records its state.
func (t *target) writeCache() error {
	const needed = frontend.FeatureFlush | frontend.FeatureConfigWCE
	if t.f.Features()&needed != needed || t.f.Capacity() == 0 {
		if t.o.WCE != nil {
			return fmt.Errorf("write cache: CONFIG_WCE was not negotiated: %w", ErrTarget)
		}
		return nil
	}
	if t.o.WCE != nil {
		value := []byte{0}
		if *t.o.WCE {
			value[0] = 1
		}
		if err := t.f.SetConfig(writebackAt, value); err != nil {
			return fmt.Errorf("write cache: %w", err)
		}
	}
	// From the start of the space, as front-ends read it.
	space, err := t.f.Config(0, writebackAt+1)
	if err != nil {
		return fmt.Errorf("write cache: %w", err)
	}
	on := space[writebackAt] != 0
	if t.wce = &on; t.o.WCE != nil && on != *t.o.WCE {
		return fmt.Errorf("write cache: set to %t, reads as %t: %w", *t.o.WCE, on, ErrTarget)
	}
	return nil
}

// area returns the number of blocks of the load, and sets Size.
func (t *target) area() (blocks uint64, err error) {
	capacity := t.f.Capacity()
	if t.o.Size == 0 {
		if capacity == 0 {
			return 0, badOptions("it does not tell the disk's size; say how much of it to use")
		}
		t.o.Size = capacity - t.o.Offset
	}
	if capacity > 0 && t.o.Size > capacity-t.o.Offset || t.o.Size < int64(t.o.BlockSize) {
		return 0, badOptions("%d bytes at offset %d in blocks of %d, the disk has %d bytes",
			t.o.Size, t.o.Offset, t.o.BlockSize, capacity)
	}
	blocks = uint64(t.o.Size) / uint64(t.o.BlockSize)
	if (t.o.RW == Read || t.o.RW == Write) && blocks < uint64(t.o.Queues) {
		return 0, badOptions("%d blocks for %d queues that each go through a part of their own",
			blocks, t.o.Queues)
	}
	return blocks, nil
}

// describeError adds the back-end's name to an error, and the reason.
func (t *target) describeError(err error) error {
	name := t.o.name()
	if t.pid > 0 && t.null == nil {
		name += fmt.Sprintf(" (process %d)", t.pid)
	}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%s: %w\nno back-end listens there; \"cowblk info NAME\" shows the socket of a disk that is being served", name, err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: %w\nit does not answer; perhaps another front-end is connected",
			name, err)
	case errors.Is(err, frontend.ErrDisconnected), errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %w\nits log says why; perhaps it has died", name, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// close ends the connection as QEMU does, or at once if the back-end has failed.
func (t *target) close() error {
	var err error
	if t.f != nil {
		err = t.f.Close()
		t.f = nil
	}
	if t.null != nil {
		err = errors.Join(err, t.null.wait())
	}
	return err
}

// abort closes the connection without messages.
func (t *target) abort() {
	if t.f != nil {
		_ = t.f.Abort()
		t.f = nil
	}
	if t.null != nil {
		_ = t.null.wait()
	}
}

// elapsed returns the time that the queues counted, from start on.
func (t *target) elapsed() time.Duration {
	var last int64
	dry := true
	for _, q := range t.queues {
		dry = dry && q.exhausted
		last = max(last, q.last)
	}
	q := t.queues[0]
	if dry && last < q.end {
		return time.Duration(last - q.start)
	}
	return time.Duration(q.end - q.start)
}
