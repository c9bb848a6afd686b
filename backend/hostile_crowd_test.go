package backend

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// crowd is a healthy disk with a reader, in the process that is attacked.
type crowd struct {
	front   *frontend.Frontend
	reads   atomic.Int64
	last    atomic.Int64 // unix nanoseconds of the last read that was right
	wrong   atomic.Value // error
	stop    chan struct{}
	ended   chan struct{}
	pause   time.Duration // between two reads
	slowest atomic.Int64  // nanoseconds
}

// newCrowd serves a healthy disk, of its own, and starts to read it.
func newCrowd(t testing.TB, pause time.Duration) *crowd {
	t.Helper()
	to := newTarget(t, targetDisk, DeviceOptions{})
	c := &crowd{stop: make(chan struct{}), ended: make(chan struct{}), pause: pause}
	a, b := test.SocketPair(t)
	served := make(chan error, 1)
	go func() { served <- serveSession(b, to) }()
	var err error
	c.front, err = frontend.New(a, frontend.Options{Memory: 4 << 20, QueueSize: 16,
		MaxTransfer: 64 << 10})
	test.Must(t, err)
	buf := make([]byte, targetDisk)
	_, err = c.front.Driver(0).ReadAt(buf, 0) // all of it is in memory from here on
	test.Must(t, err)
	c.last.Store(time.Now().UnixNano())
	go c.read(to.base)
	t.Cleanup(func() {
		close(c.stop)
		<-c.ended
		test.Must(t, c.front.Close())
		test.Check(t, <-served, "the healthy session")
		c.check(t)
	})
	return c
}

// read reads, and now and then writes, until it is stopped or finds something wrong.
func (c *crowd) read(want []byte) {
	defer close(c.ended)
	d := c.front.Driver(0)
	r := rand.New(rand.NewPCG(3, 4))
	want = bytes.Clone(want)
	buf := make([]byte, 64<<10)
	for {
		select {
		case <-c.stop:
			return
		case <-time.After(c.pause):
		}
		n := (1 + r.IntN(len(buf)/512)) * 512
		off := r.IntN((len(want)-n)/512) * 512
		start := time.Now()
		var err error
		if r.IntN(16) == 0 {
			for i := range buf[:n] {
				buf[i] = byte(off>>9 + i)
			}
			copy(want[off:], buf[:n])
			_, err = d.WriteAt(buf[:n], int64(off))
		} else if _, err = d.ReadAt(buf[:n], int64(off)); err == nil &&
			!bytes.Equal(buf[:n], want[off:off+n]) {
			err = fmt.Errorf("%d bytes at %d are not what was written", n, off)
		}
		if err != nil {
			c.wrong.Store(err)
			return
		}
		now := time.Now()
		c.slowest.Store(max(c.slowest.Load(), int64(now.Sub(start))))
		c.last.Store(now.UnixNano())
		c.reads.Add(1)
	}
}

// check fails the test if the healthy disk is wrong, or has stood still for long.
func (c *crowd) check(t testing.TB) {
	t.Helper()
	if err, ok := c.wrong.Load().(error); ok {
		t.Fatalf("the healthy disk, after %d reads: %v", c.reads.Load(), err)
	}
	if still := time.Since(time.Unix(0, c.last.Load())); still > patience {
		t.Fatalf("the healthy disk has stood still for %v", still)
	}
}

// report says how the healthy disk fared.
func (c *crowd) report(t testing.TB) {
	t.Helper()
	c.check(t)
	if c.reads.Load() == 0 {
		t.Error("the healthy disk was not read")
	}
	t.Logf("%d healthy requests, slowest %v", c.reads.Load(), time.Duration(c.slowest.Load()))
}
