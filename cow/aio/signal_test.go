package aio

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// Many rounds in which only the eventfd ends the wait: a signal lost anywhere between the kernel's
// list of task work, the mute flag and Reap would hang.
func TestNoSignalIsLost(t *testing.T) {
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			conform(t, 8, func(r *rig) {
				fd := p.file(r.t, 64*page)
				mem := aligned(r.t, 8*page)
				next, out := uint64(0), 0
				var list []Completion
				for done := 0; done < 3000; {
					// One to eight in flight, changing all the time.
					for out < 1+int(next%8) && r.e.Start(next, false, fd,
						vec(mem[next%8*page:][:page]), int64(next%64)*page) {
						next++
						out++
					}
					r.submit()
					list = r.e.Reap(list[:0])
					for _, c := range list {
						want(r.t, "read", c, page, 0)
					}
					done += len(list)
					out -= len(list)
					// Also after a Reap that found only some.
					if out > 0 && !r.signalled(hangGuard) {
						r.t.Fatalf("no signal, with %d in flight", r.e.InFlight())
					}
				}
				r.wait(out)
			})
		})
	}
}

// The signal comes while the ring's thread sleeps in poll, though only that thread may finish the
// transfer. Another thread provides the data after the sleep has begun.
func TestSignalWakesTheThread(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			r := newRig(t, v, 4)
			var pipe [2]int
			test.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
			defer unix.Close(pipe[0])
			defer unix.Close(pipe[1])
			mem := make([]byte, 8)
			for i := range uint64(200) {
				r.start(i, false, pipe[0], vec(mem), 0)
				r.submit()
				if got := r.e.Reap(nil); len(got) != 0 {
					t.Fatalf("completed before it was answered: %v", got)
				}
				go func() {
					for range i % 16 {
						runtime.Gosched()
					}
					unix.Write(pipe[1], []byte("answered"))
				}()
				want(t, "read", r.wait(1)[i], 8, 0)
			}
		})
	}
}

// After a Reap that found everything no signal of what it found is left; one more is allowed, a
// stream is not.
func TestReapedIsNotSignalledForEver(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, 4*page)
		r.transfer(false, fd, vec(make([]byte, page)), 0)
		r.signalled(0)
		r.signalled(1)
		if r.signalled(1) {
			r.t.Fatal("signalled again and again with nothing in flight")
		}
	})
}

// Reap without an eventfd finds everything, too.
func TestWithoutEventFD(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			runtime.LockOSThread()
			e, err := v.make(8, 0)
			test.Must(t, err)
			fd := places(t)[0].file(t, 8*page)
			mem := make([]byte, 8*page)
			for i := range uint64(8) {
				e.Start(i, false, fd, vec(mem[i*page:][:page]), int64(i)*page)
			}
			test.Must(t, e.Submit())
			var list []Completion
			for len(list) < 8 {
				list = e.Reap(list)
				runtime.Gosched()
			}
			wantPattern(t, "read", mem, 0)
			test.Must(t, e.Close())
		})
	}
}
