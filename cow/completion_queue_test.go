package cow

import (
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/internal/test"
)

// No completion of many goroutines is lost on its way to a channel that sleeps whenever there is
// none.
func TestCompletionQueue(t *testing.T) {
	const senders, each = 4, 20_000
	c := &Channel{}
	test.Must(t, c.completions.notifier.Open())
	var wg sync.WaitGroup
	for id := range senders {
		wg.Go(func() {
			for i := range each {
				r := &Request{ch: c, Slot: id, Offset: int64(i)}
				r.complete()
				if i%64 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	var done requestList
	next := [senders]int64{}
	for got := 0; got < senders*each; {
		fds := [1]unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds[:], 5000)
		if err == unix.EINTR {
			continue
		}
		if n == 0 {
			t.Fatalf("asleep with %d of %d completions", got, senders*each)
		}
		c.completions.drainTo(&done)
		for r := done.pop(); r != nil; r = done.pop() {
			if r.Offset != next[r.Slot] {
				t.Fatalf("completion %d of sender %d came when %d was to", r.Offset, r.Slot,
					next[r.Slot])
			}
			next[r.Slot]++
			got++
		}
	}
	wg.Wait()
	test.Must(t, c.completions.close())
}

// A completion may be taken before its signal arrives. When the signal arrives and is read with the
// channel's FD, as a worker does that was woken for nothing, the next completion must signal again.
func TestSignalAfterItsCompletion(t *testing.T) {
	c := &Channel{inFlight: 2}
	l := &c.completions
	test.Must(t, l.notifier.Open())
	defer l.close()
	var room [2]*Request
	l.head.Store(&Request{ch: c}) // the first half of complete
	if got := c.Completed(room[:0]); len(got) != 1 {
		t.Fatalf("%d completions", len(got))
	}
	if err := l.notifier.Notify(); err != nil { // the second half
		t.Fatal(err)
	}
	if n, err := eventfd.Drain(c.FD()); n != 1 || err != nil {
		t.Fatalf("Drain: %d, %v", n, err)
	}
	if got := c.Completed(room[:0]); len(got) != 0 {
		t.Fatalf("%d completions", len(got))
	}
	(&Request{ch: c}).complete()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLIN}}, 0); n != 1 {
		t.Fatalf("the next completion does not signal: %v", err)
	}
	if got := c.Completed(room[:0]); len(got) != 1 {
		t.Errorf("%d completions", len(got))
	}
}
