package aio

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
)

const page = 4096

// Every kind of file, cached and not: many concurrent operations read what was written, and each
// completion has its own ID and length.
func TestTransfers(t *testing.T) {
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			conform(t, 32, func(r *rig) {
				const blocks = 256
				fd := p.file(r.t, blocks*page)
				rnd := rand.New(rand.NewPCG(1, 2))
				for round := range 16 {
					if round%4 == 1 {
						chill(r.t, fd)
					}
					mem := aligned(r.t, 32*page)
					pick := rnd.Perm(blocks)[:32]
					for i, block := range pick {
						r.start(uint64(block), round%4 == 3, fd, vec(mem[i*page:][:page]),
							int64(block)*page)
						if round%4 == 3 {
							copy(mem[i*page:], pattern(int64(block)*page, page))
						}
					}
					if r.e.InFlight() != 32 {
						r.t.Fatalf("%d in flight, expected 32", r.e.InFlight())
					}
					r.submit()
					got := r.wait(32)
					for i, block := range pick {
						want(r.t, "transfer", got[uint64(block)], page, 0)
						wantPattern(r.t, "block", mem[i*page:][:page], int64(block)*page)
					}
					if r.e.InFlight() != 0 {
						r.t.Fatalf("%d in flight, expected none", r.e.InFlight())
					}
				}
			})
		})
	}
}

func TestScatterAndGather(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, 64*page)
		for _, n := range []int{1, shortIovecs, shortIovecs + 1, MaxIovecs} {
			bufs := make([][]byte, n)
			for i := range bufs {
				bufs[i] = make([]byte, 1+i%7)
			}
			total := len(bytes.Join(bufs, nil))
			want(r.t, "read", r.transfer(false, fd, vec(bufs...), 100), total, 0)
			wantPattern(r.t, "read", bytes.Join(bufs, nil), 100)

			copy(bufs[n-1], "!")
			want(r.t, "write", r.transfer(true, fd, vec(bufs...), 8192), total, 0)
			back := make([]byte, total)
			want(r.t, "read", r.transfer(false, fd, vec(back), 8192), total, 0)
			if !bytes.Equal(back, bytes.Join(bufs, nil)) {
				r.t.Fatalf("%d iovecs: what was written is not what is read", n)
			}
			unix.Pwrite(fd, pattern(8192, total), 8192)
		}
	})
}

func TestTooManyIovecs(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, page)
		if r.e.Start(1, false, fd, make([]unix.Iovec, MaxIovecs+1), 0) {
			r.t.Fatal("Start took more than MaxIovecs")
		}
		if r.e.InFlight() != 0 {
			r.t.Fatal("a refused operation is in flight")
		}
		want(r.t, "no iovecs", r.transfer(false, fd, nil, 0), 0, 0)
	})
}

// After Start the caller may reuse the array.
func TestIovecsAreCopied(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, 4*page)
		a, b := make([]byte, page), make([]byte, page)
		iov := vec(a)
		r.start(1, false, fd, iov, 0)
		iov[0] = vec(b)[0]
		r.start(2, false, fd, iov, page)
		iov[0] = unix.Iovec{}
		r.submit()
		got := r.wait(2)
		want(r.t, "first", got[1], page, 0)
		want(r.t, "second", got[2], page, 0)
		wantPattern(r.t, "first", a, 0)
		wantPattern(r.t, "second", b, page)
	})
}

func TestShortReads(t *testing.T) {
	for _, p := range places(t) {
		t.Run(p.name, func(t *testing.T) {
			conform(t, 4, func(r *rig) {
				fd := p.file(r.t, 2*page+512)
				mem := aligned(r.t, 2*page)
				want(r.t, "across the end", r.transfer(false, fd, vec(mem), page), page+512, 0)
				wantPattern(r.t, "across the end", mem[:page+512], page)
				want(r.t, "behind the end", r.transfer(false, fd, vec(mem), 64*page), 0, 0)
			})
		})
	}
}

// An operation holds its slot from Start to Reap.
func TestFull(t *testing.T) {
	conform(t, 8, func(r *rig) {
		fd := places(r.t)[0].file(r.t, 16*page)
		mem := make([]byte, 8*page)
		for round := range 5 {
			for i := range 8 {
				r.start(uint64(i), false, fd, vec(mem[i*page:][:page]), int64(i)*page)
			}
			if r.e.Start(8, false, fd, vec(mem[:page]), 0) {
				r.t.Fatal("Start took more than Depth")
			}
			r.submit()
			if r.e.Start(8, false, fd, vec(mem[:page]), 0) {
				r.t.Fatal("Start took more than Depth while they are in the kernel")
			}
			if round == 2 {
				// Completed and not reaped: still in flight.
				for !r.signalled(hangGuard) {
				}
				if r.e.InFlight() != 8 || r.e.Start(8, false, fd, vec(mem[:page]), 0) {
					r.t.Fatal("a completion makes room before it is reaped")
				}
			}
			got := r.wait(8)
			for i := range 8 {
				want(r.t, "read", got[uint64(i)], page, 0)
			}
		}
	})
}

func TestDepthOfOne(t *testing.T) {
	conform(t, 1, func(r *rig) {
		fd := places(r.t)[0].file(r.t, 64*page)
		for i := range int64(64) {
			b := make([]byte, page)
			want(r.t, "read", r.transfer(false, fd, vec(b), i*page), page, 0)
			wantPattern(r.t, "read", b, i*page)
		}
	})
}

func TestNothingQueued(t *testing.T) {
	conform(t, 4, func(r *rig) {
		r.submit()
		if got := r.e.Reap(nil); got != nil {
			r.t.Fatalf("Reap of nothing: %v", got)
		}
		if r.signalled(0) {
			r.t.Fatal("a signal for nothing")
		}
	})
}

// Nothing happens before Submit.
func TestStartDoesNotTransfer(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, page)
		r.start(1, true, fd, vec([]byte("written")), 0)
		if len(r.e.Reap(nil)) != 0 || r.signalled(20) {
			r.t.Fatal("a completion before Submit")
		}
		b := make([]byte, page)
		unix.Pread(fd, b, 0)
		wantPattern(r.t, "before Submit", b, 0)
		r.submit()
		want(r.t, "write", r.wait(1)[1], 7, 0)
	})
}

// Reap appends.
func TestReapAppends(t *testing.T) {
	conform(t, 4, func(r *rig) {
		fd := places(r.t)[0].file(r.t, page)
		r.start(7, false, fd, vec(make([]byte, 16)), 0)
		r.submit()
		list := []Completion{{ID: 99}}
		for len(list) == 1 {
			list = r.e.Reap(list)
		}
		if len(list) != 2 || list[0].ID != 99 || list[1].ID != 7 {
			r.t.Fatalf("reaped %v", list)
		}
	})
}
