package daemon

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// slow is a served disk whose device can be made to answer no more.
type slow struct {
	*served
	caught  chan struct{} // a call that is held back
	release func()
	files   *faultfs.FS
}

// serveSlow serves a disk whose calls on files can be held back, as the only one of a daemon.
func serveSlow(t *testing.T) (*slow, *Daemon) {
	s := &slow{files: faultfs.Over(vfs.OS{}, nil)}
	d := New(Options{Names: &cutHeads{s: s}})
	s.served = serveOn(t, s.files, func(v *served) { d.Add(v.export) })
	return s, d
}

// hold holds back the calls op on files whose name ends in suffix, until release.
func (s *slow) hold(op, suffix string) {
	caught, open := make(chan struct{}, 64), make(chan struct{})
	var once sync.Once
	s.caught, s.release = caught, func() { once.Do(func() { close(open) }) }
	s.t.Cleanup(s.release) // before serve's own, which waits for what is in flight
	s.files.OnCall(func(c faultfs.Call) error {
		if c.Op == op && strings.HasSuffix(c.Name, suffix) {
			caught <- struct{}{}
			<-open
		}
		return nil
	})
}

// goesOn fails unless f returns although a disk does not answer.
func goesOn(t *testing.T, what string, f func() error) {
	t.Helper()
	t.Log(what)
	test.Go(f).Must(t)
}

// A device that does not answer to a write holds up the queue that waits for it, and nothing else:
// not the disk's other queues, not other disks, not what a person asks. GET_VRING_BASE waits for
// it, as it must.
func TestSlowDiskHoldsUpItsQueueOnly(t *testing.T) {
	s, d := serveSlow(t)
	other := serve(t)
	f := s.dial(frontend.Options{Queues: 2})
	defer f.Abort()
	healthy := other.dial(frontend.Options{})
	defer healthy.Close()
	test.Must(t, backendtest.Write(f.Driver(1), 1, 0)()) // a block that the head owns: later its writes need no guard

	s.hold("write", "/data")
	stuck := test.Go(backendtest.Write(f.Driver(0), 2, 1<<20))
	<-s.caught
	p := make([]byte, 4096)
	goesOn(t, "a read on another queue", func() error { _, err := f.Driver(1).ReadAt(p, 0); return err })
	goesOn(t, "a write to another disk", backendtest.Write(healthy.Driver(0), 3, 0))
	goesOn(t, "a flush of another disk", healthy.Driver(0).Flush)
	goesOn(t, "query-cow-disks", func() error { d.snapshot()[0].info(); return nil })
	goesOn(t, "query-cow-stats", func() error { s.dev.Stats(); return nil })

	stop := test.Go(f.Stop) // GET_VRING_BASE of each ring
	if !stop.Waits() {
		t.Fatalf("the rings were stopped with a request in flight: %v", stop.Wait())
	}
	goesOn(t, "query-cow-stats, while a ring is being stopped,", func() error { s.dev.Stats(); return nil })
	goesOn(t, "cow-set, while a ring is being stopped,", func() error { s.dev.SetPoll(time.Microsecond); return nil })
	s.release()
	stop.Must(t)
	stuck.Wait() // its completion came before the stop, or comes after Cont
	test.Must(t, f.Cont())
	stuck = test.Go(func() error { _, err := f.Driver(0).ReadAt(p, 1<<20); return err })
	stuck.Must(t)
	if !bytes.Equal(p, bytes.Repeat([]byte{2}, 4096)) {
		t.Error("the write that was held back is not there")
	}
}

// A device that does not answer to a sync holds up flushes, and neither reads nor writes, on the
// same queue.
func TestSlowSyncHoldsUpFlushesOnly(t *testing.T) {
	s, _ := serveSlow(t)
	f := s.dial(frontend.Options{})
	defer f.Abort()
	d := f.Driver(0)
	test.Must(t, backendtest.Write(d, 1, 0)())
	s.hold("sync", "/data")
	test.Must(t, d.Submit(0, frontend.OpFlush, 0, 0))
	test.Must(t, d.Kick())
	<-s.caught
	var done []frontend.Completion
	for slot, op := range []frontend.Op{1: frontend.OpWrite, 2: frontend.OpRead} {
		if slot == 0 {
			continue
		}
		test.Must(t, d.Submit(slot, op, 1<<20, 4096))
		test.Must(t, d.Kick())
		for done = d.Poll(done[:0]); len(done) == 0; done = d.Poll(done[:0]) {
			test.Must(t, d.Wait())
		}
		if done[0].ID != slot || done[0].Status != frontend.StatusOK {
			t.Fatalf("%+v", done[0])
		}
	}
	s.release()
	for done = d.Poll(done[:0]); len(done) == 0; done = d.Poll(done[:0]) {
		test.Must(t, d.Wait())
	}
	if done[0].ID != 0 || done[0].Status != frontend.StatusOK {
		t.Fatalf("flush: %+v", done[0])
	}
}

// cutHeads makes new heads for a served disk, and commits nothing.
type cutHeads struct {
	fakeNames
	s    *slow
	next *layer.Layer
}

func (n *cutHeads) Prepare(context.Context, []string, string) (Pending, error) {
	below := n.s.disk.Layers()
	top := below[len(below)-1]
	paths := layer.Paths{Map: filepath.Join(n.s.dir, "map2"), Data: filepath.Join(n.s.dir, "data2")}
	l, err := layer.CreateHead(vfs.OS{}, paths, layer.CreateParams{
		Size: top.Size, BlockSize: top.BlockSize, Parent: top.UUID, Base: top.Base, BaseSize: top.BaseSize,
	})
	if err == nil {
		err = l.Close()
	}
	if err == nil {
		n.next, err = layer.Open(n.s.files, paths, layer.OpenParams{Write: true})
	}
	return n, err
}

func (n *cutHeads) Tag() string           { return "t" }
func (n *cutHeads) Heads() []*layer.Layer { return []*layer.Layer{n.next} }
func (n *cutHeads) Commit() error         { return nil }
func (n *cutHeads) Revert() error         { return nil }
func (n *cutHeads) Close(bool)            {}

// A disk is promoted while its device does not answer: the cut waits for nothing, and the new head
// takes writes. Sealing waits.
func TestPromotionOfASlowDisk(t *testing.T) {
	s, d := serveSlow(t)
	f := s.dial(frontend.Options{Queues: 2})
	defer f.Abort()
	s.hold("write", "/data")
	stuck := test.Go(backendtest.Write(f.Driver(0), 2, 1<<20))
	<-s.caught
	goesOn(t, "a promotion", func() error {
		_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"test"}}, "")
		return err
	})
	goesOn(t, "a write to the new head", backendtest.Write(f.Driver(1), 3, 2<<20))
	if n := s.disk.Stats().Unsealed; n != 1 {
		t.Errorf("%d layers are not sealed, expected the former head", n)
	}
	s.release()
	stuck.Must(t)
	d.background.Wait() // until it is sealed
	test.Equal(t, s.disk.Stats().Unsealed, 0, "layers are not sealed")
	p := make([]byte, 4096)
	_, err := f.Driver(1).ReadAt(p, 1<<20)
	test.Must(t, err)
	if !bytes.Equal(p, bytes.Repeat([]byte{2}, 4096)) {
		t.Error("the write that was held back is not there")
	}
}

// A former head that cannot be sealed, however often it is tried, does not keep the process from
// ending.
func TestUnsealedHeadDoesNotHoldUpTheEnd(t *testing.T) {
	s, d := serveSlow(t)
	ctx, end := context.WithCancel(t.Context())
	d.serving = ctx // as Run has it
	f := s.dial(frontend.Options{})
	test.Must(t, backendtest.Write(f.Driver(0), 1, 0)())
	var fails atomic.Bool
	fails.Store(true)
	s.files.OnCall(func(c faultfs.Call) error {
		if fails.Load() && c.Op == "write" && strings.HasSuffix(c.Name, "/map") {
			return unix.ENOSPC
		}
		return nil
	})
	_, err := d.promote(t.Context(), PromoteArgs{Disks: []string{"test"}}, "")
	test.Must(t, err)
	if s.disk.Stats().Unsealed != 1 {
		t.Fatal("there is no former head to seal")
	}
	test.Must(t, backendtest.Write(f.Driver(0), 2, 1<<20)())
	end()
	d.background.Wait()
	fails.Store(false)
	test.Must(t, f.Close())
}
