package daemon

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// slow is the served disk "test" of a store whose device can be made to answer no more.
type slow struct {
	*running
	head    string        // directory of the head's files
	caught  chan struct{} // a call that is held back
	release func()
	files   *faultfs.FS
}

func serveSlow(t *testing.T) *slow {
	files := faultfs.Over(vfs.OS{}, nil)
	s := &slow{running: start(t, newStore(t, files, "test"), Options{}, "test"), files: files}
	s.head = filepath.Dir(s.manifests.Data("test"))
	return s
}

func (s *slow) disk() *cow.Disk { return s.exports[0].dev.Disk() }

// hold holds back the calls op on files in or at path, until release.
func (s *slow) hold(op, path string) {
	caught, open := make(chan struct{}, 64), make(chan struct{})
	var once sync.Once
	s.caught, s.release = caught, func() { once.Do(func() { close(open) }) }
	s.t.Cleanup(s.release) // before start's own, which waits for what is in flight
	s.files.OnCall(func(c faultfs.Call) error {
		if c.Op == op && strings.HasPrefix(c.Name, path) {
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
	s := serveSlow(t)
	other := start(t, newStore(t, nil, "test"), Options{}, "test")
	f := s.dial("test", frontend.Options{Queues: 2})
	defer f.Abort()
	healthy := other.dial("test", frontend.Options{})
	defer healthy.Close()
	// a block that the head owns: later its writes need no guard
	test.Must(t, backendtest.Write(f.Driver(1), 1, 0)())

	s.hold("write", s.head+"/data")
	stuck := test.Go(backendtest.Write(f.Driver(0), 2, 1<<20))
	<-s.caught
	p := make([]byte, 4096)
	goesOn(t, "a read on another queue",
		func() error { _, err := f.Driver(1).ReadAt(p, 0); return err })
	goesOn(t, "a write to another disk", backendtest.Write(healthy.Driver(0), 3, 0))
	goesOn(t, "a flush of another disk", healthy.Driver(0).Flush)
	goesOn(t, "query-cow-disks", func() error { s.exports[0].info(); return nil })
	goesOn(t, "query-cow-stats", func() error { s.exports[0].dev.Stats(); return nil })

	stop := test.Go(f.Stop) // GET_VRING_BASE of each ring
	if !stop.WaitsIn(t, "backend.(*worker).stop") {
		t.Fatalf("the rings were stopped with a request in flight: %v", stop.Wait())
	}
	goesOn(t, "query-cow-stats, while a ring is being stopped,",
		func() error { s.exports[0].dev.Stats(); return nil })
	goesOn(t, "cow-set, while a ring is being stopped,",
		func() error { s.exports[0].dev.SetPoll(time.Microsecond); return nil })
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
	s := serveSlow(t)
	f := s.dial("test", frontend.Options{})
	defer f.Abort()
	d := f.Driver(0)
	test.Must(t, backendtest.Write(d, 1, 0)())
	s.hold("sync", s.head+"/data")
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

// A disk is promoted while its device does not answer: the cut waits for nothing, and the new head
// takes writes. Sealing waits.
func TestPromotionOfASlowDisk(t *testing.T) {
	s := serveSlow(t)
	f := s.dial("test", frontend.Options{Queues: 2})
	defer f.Abort()
	s.hold("write", s.head+"/data")
	stuck := test.Go(backendtest.Write(f.Driver(0), 2, 1<<20))
	<-s.caught
	goesOn(t, "a promotion", func() error {
		_, err := s.promote(t.Context(), PromoteArgs{Disks: []string{"test"}}, "")
		return err
	})
	goesOn(t, "a write to the new head", backendtest.Write(f.Driver(1), 3, 2<<20))
	if n := s.disk().Stats().Unsealed; n != 1 {
		t.Errorf("%d layers are not sealed, expected the former head", n)
	}
	s.release()
	stuck.Must(t)
	test.Eventually(t, "the former head is sealed",
		func() bool { return s.disk().Stats().Unsealed == 0 })
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
	s := serveSlow(t)
	f := s.dial("test", frontend.Options{})
	test.Must(t, backendtest.Write(f.Driver(0), 1, 0)())
	var fails atomic.Bool
	fails.Store(true)
	s.files.OnCall(func(c faultfs.Call) error {
		if fails.Load() && c.Op == "write" && c.Name == filepath.Join(s.head, "map") {
			return unix.ENOSPC
		}
		return nil
	})
	_, err := s.promote(t.Context(), PromoteArgs{Disks: []string{"test"}}, "")
	test.Must(t, err)
	if s.disk().Stats().Unsealed != 1 {
		t.Fatal("there is no former head to seal")
	}
	test.Must(t, backendtest.Write(f.Driver(0), 2, 1<<20)())
	s.quit()
	<-s.alive.Done()
	fails.Store(false)
	f.Abort()
}

// The store does not answer while a promotion is prepared: the promotion waits, and nothing else
// does. The client may give up; the promotion is completed or undone when the store answers.
func TestPromotionWhileTheStoreDoesNotAnswer(t *testing.T) {
	s := serveSlow(t)
	f := s.dial("test", frontend.Options{})
	c := s.control()
	test.Must(t, backendtest.Write(f.Driver(0), 1, 0)())
	s.hold("sync", filepath.Join(s.opts.Store.Dir(), "tmp"))
	args := PromoteArgs{Disks: []string{"test"}, Tag: "t"}
	asked := test.Go(func() error { return c.Run(t.Context(), "cow-promote", args, nil) })
	<-s.caught
	gone, giveUp := context.WithCancel(t.Context())
	impatient := test.Go(func() error {
		return c.Run(gone, "cow-promote", PromoteArgs{Disks: []string{"test"}, Tag: "given-up"},
			nil)
	})
	giveUp()
	impatient.Wait()
	goesOn(t, "a write or a flush", func() error {
		for i := range byte(20) {
			if err := errors.Join(backendtest.Write(f.Driver(0), i, 4096)(),
				f.Driver(0).Flush()); err != nil {
				return err
			}
		}
		return nil
	})
	wantAt(t, f, 19, 4096)
	for _, query := range []string{"query-cow-disks", "query-cow-stats"} {
		goesOn(t, query, func() error { return c.Run(t.Context(), query, nil, nil) })
	}
	s.release()
	asked.Must(t)
	args.Tag = "u"
	test.Must(t, c.Run(t.Context(), "cow-promote", args, nil))
	wantAt(t, f, 1, 0)
	wantAt(t, f, 19, 4096)
	s.end()
	wantClean(t, s.opts.Store)
}
