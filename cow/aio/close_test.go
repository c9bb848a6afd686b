package aio

import (
	"bytes"
	"errors"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// openFIFO opens a FIFO that is never written to: a read blocks for ever.
func openFIFO(t testing.TB) int {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fifo")
	test.Must(t, unix.Mkfifo(name, 0o600))
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	test.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// A file that never answers does not block Close.
func TestCloseWhileNothingAnswers(t *testing.T) {
	targets := map[string]func(testing.TB) int{
		"fifo":    openFIFO,
		"eventfd": blockingEventFD,
	}
	for name, target := range targets {
		t.Run(name, func(t *testing.T) {
			conform(t, 16, func(r *rig) {
				fd := target(r.t)
				mem := make([]byte, 16*8)
				for i := range 12 {
					r.start(uint64(i), false, fd, vec(mem[i*8:][:8]), 0)
				}
				r.submit()
				for i := 12; i < 16; i++ { // and some that the kernel never sees
					r.start(uint64(i), false, fd, vec(mem[i*8:][:8]), 0)
				}
				if r.signalled(10) {
					r.t.Fatalf("%s: the read does not wait: %v", name, r.e.Reap(nil))
				}
				r.close()
			})
		})
	}
}

// close closes the engine and checks the state of a closed engine.
func (r *rig) close() {
	r.t.Helper()
	test.Must(r.t, r.e.Close())
	test.Must(r.t, r.e.Close(), "second Close")
	if r.e.Start(1, false, -1, nil, 0) {
		r.t.Fatal("Start after Close")
	}
	test.Must(r.t, r.e.Submit(), "Submit after Close")
	if got := r.e.Reap(nil); got != nil {
		r.t.Fatalf("Reap after Close: %v", got)
	}
	if n := r.e.InFlight(); n != 0 {
		r.t.Fatalf("%d in flight after Close", n)
	}
}

func blockingEventFD(t testing.TB) int {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	test.Must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// Nothing is written to the callers' memory after Close, whatever was in flight.
func TestCloseGivesTheMemoryBack(t *testing.T) {
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			fd := p.file(t, 8<<20)
			for range 3 {
				conform(t, 64, func(r *rig) {
					chill(r.t, fd)
					mem := aligned(r.t, 64*128<<10)
					for i := range int64(64) {
						r.start(uint64(i), false, fd, vec(mem[i<<17:][:128<<10]), i<<17)
						if i == 32 {
							r.submit()
						}
					}
					r.submit()
					list := r.e.Reap(nil)
					r.close()
					clear(mem)
					time.Sleep(5 * time.Millisecond)
					if !bytes.Equal(mem, make([]byte, len(mem))) {
						r.t.Fatalf("memory changed after Close (%d reaped before it)", len(list))
					}
				})
			}
		})
	}
}

// Operations that were not submitted do not happen.
func TestCloseDropsWhatIsQueued(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, page)
		r.start(1, true, fd, vec([]byte("written")), 0)
		r.close()
		b := make([]byte, page)
		unix.Pread(fd, b, 0)
		wantPattern(r.t, "after Close", b, 0)
	})
}

// An engine leaves nothing behind, used or not.
func TestCloseLeavesNothing(t *testing.T) {
	for _, v := range variants(t) {
		fd := places(t)[0].file(t, page)
		event := eventFD(t)
		before, goroutines := test.CountFDs(t), runtime.NumGoroutine()
		for i := range 20 {
			e, err := v.make(1, event)
			test.Must(t, err)
			if i%2 == 1 {
				e.Start(1, false, fd, vec(make([]byte, page)), 0)
				e.Submit()
			}
			test.Must(t, e.Close())
		}
		if n := test.CountFDs(t); n != before {
			t.Errorf("%s: %d descriptors, %d before", v.name, n, before)
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			t.Errorf("%s: %d goroutines, %d before", v.name, n, goroutines)
		}
	}
}

// Close on another thread is refused while the ring's own thread has operations in flight, and the
// ring stays usable.
func TestCloseOnAnotherThread(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			r := newRig(t, v, 4)
			fd := openFIFO(t)
			mem := make([]byte, 8)
			r.start(1, false, fd, vec(mem), 0)
			r.submit()
			result := make(chan error)
			go func() {
				runtime.LockOSThread()
				result <- r.e.Close()
			}()
			err := <-result
			if r.e.single && !errors.Is(err, ErrForeignThread) {
				t.Fatalf("Close on another thread: %v", err)
			}
			r.close()
		})
	}
}

// When everything was reaped any thread may call Close, also after the ring's thread has ended.
func TestCloseAfterTheThread(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			fd := places(t)[0].file(t, page)
			event := eventFD(t)
			engine := make(chan *Engine)
			go func() {
				runtime.LockOSThread() // never unlocked: the thread ends
				defer close(engine)
				e, err := v.make(4, event)
				if err != nil {
					t.Error(err)
					return
				}
				r := &rig{t: t, e: e, fd: event}
				r.start(1, false, fd, vec(make([]byte, 8)), 0)
				r.submit()
				r.wait(1)
				engine <- e
			}()
			e := <-engine
			if e == nil {
				t.FailNow()
			}
			<-engine
			test.Must(t, e.Close())
		})
	}
}

// The wrong thread gets an error, and the operations complete with it.
func TestSubmitOnAnotherThread(t *testing.T) {
	for _, v := range variants(t) {
		t.Run(v.name, func(t *testing.T) {
			r := newRig(t, v, 4)
			fd := places(t)[0].file(t, page)
			want(t, "read", r.transfer(false, fd, vec(make([]byte, 8)), 0), 8, 0)
			done := make(chan error)
			go func() {
				runtime.LockOSThread()
				r.start(2, false, fd, vec(make([]byte, 8)), 0)
				done <- r.e.Submit()
			}()
			err := <-done
			if !r.e.single {
				test.Must(t, err)
				want(t, "read", r.wait(1)[2], 8, 0)
				return
			}
			if !errors.Is(err, ErrForeignThread) {
				t.Fatalf("Submit on another thread: %v", err)
			}
			want(t, "read", r.wait(1)[2], 0, unix.EEXIST)
			want(t, "read", r.transfer(false, fd, vec(make([]byte, 8)), 0), 8, 0)
		})
	}
}
