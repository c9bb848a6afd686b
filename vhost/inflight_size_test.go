package vhost_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
	"cowblk/vhost/virtq"
)

// connectLogged starts a front-end on a session that logs warnings.
func connectLogged(t *testing.T, queues int, o frontend.Options) (*served, *frontend.Frontend,
	*test.Log) {
	t.Helper()
	log := &test.Log{}
	s := serveWith(t, newFake(queues), vhost.Options{Log: log.Logger()})
	return s, connect(t, s, o), log
}

// own is the size of the buffer made by this package, in bytes.
func own(queues int, asked uint16) uint64 {
	return uint64(queues * (virtq.InflightSize(asked) + virtq.InflightSize(1024)))
}

// QEMU 10.0.13 sends its property queue-size, 128 by default, and starts rings of 256 or 1,024
// descriptors. Each ring has its own region that is large enough, and the next process finds it
// there.
func TestInflightRingsLargerThanAsked(t *testing.T) {
	for _, num := range []uint16{64, 128, 256, 1024} {
		s, f, log := connectLogged(t, 8, frontend.Options{Queues: 4, QueueSize: num,
			InflightQueueSize: 128})
		must(t, "barrier", f.Barrier())
		want := uint16(128)
		if num > 128 {
			want = 1024
		}
		for i := range 4 {
			q := s.be.queue(i)
			if len(q.Inflight) != virtq.InflightSize(want) || q.InflightNum != want {
				t.Fatalf("ring %d of %d descriptors: a region of %d bytes for %d descriptors, expected one for %d",
					i, num, len(q.Inflight), q.InflightNum, want)
			}
			q.Inflight[0], q.Inflight[len(q.Inflight)-1] = byte(i+1), byte(i+1)
		}
		_, desc := f.Inflight()
		if desc != (vhost.Inflight{Size: own(4, 128), Queues: 4, QueueSize: 128}) {
			t.Errorf("rings of %d: the buffer is %+v", num, desc)
		}
		must(t, "disconnect", f.Disconnect())
		test.Check(t, <-s.end)
		must(t, "fake", s.be.done())

		next := serve(t, newFake(8))
		must(t, "reconnect", f.ReconnectOn(next.conn))
		must(t, "barrier", f.Barrier())
		for i := range 4 {
			r := next.be.region(i)
			if len(r) != virtq.InflightSize(want) || r[0] != byte(i+1) || r[len(r)-1] != byte(i+1) {
				t.Errorf("rings of %d: ring %d has another region than before", num, i)
			}
		}
		must(t, "disconnect", f.Disconnect())
		test.Check(t, <-next.end)
		must(t, "fake", next.be.done())
		must(t, "abort", f.Abort())
		if n := len(log.Values("buffer_descriptors")); n != 0 {
			t.Errorf("rings of %d: %d warnings, expected none", num, n)
		}
	}
}

// TestInflightSizes sets buffers of many sizes under rings of many sizes. Every ring starts; if it
// has a region, the region is where the maker of the buffer placed it.
func TestInflightSizes(t *testing.T) {
	const small, large = 2112, 16448 // regions for 128 and for 1,024 descriptors, bytes
	if virtq.InflightSize(128) != small || virtq.InflightSize(1024) != large {
		t.Fatal("the sizes of regions have changed: buffers of former versions are not found any more")
	}
	for _, tc := range []struct {
		name   string
		desc   vhost.Inflight
		num    uint16   // descriptors of each of two rings
		at     []uint64 // of each ring's region; nil: none has one
		region uint16   // descriptors of a region
	}{
		{"ours, small rings", vhost.Inflight{Size: own(2, 128), Queues: 2, QueueSize: 128}, 128,
			[]uint64{0, small}, 128},
		{"ours, large rings", vhost.Inflight{Size: own(2, 128), Queues: 2, QueueSize: 128}, 256,
			[]uint64{2 * small, 2*small + large}, 1024},
		{"ours, largest rings", vhost.Inflight{Size: own(2, 128), Queues: 2, QueueSize: 128}, 1024,
			[]uint64{2 * small, 2*small + large}, 1024},
		{"ours, made for more rings, small", vhost.Inflight{Size: own(4, 128), Queues: 2,
			QueueSize: 128}, 64, []uint64{0, small}, 128},
		{"ours, made for more rings, large", vhost.Inflight{Size: own(4, 128), Queues: 2,
			QueueSize: 128}, 512, []uint64{4 * small, 4*small + large}, 1024},
		{"ours, made for fewer rings", vhost.Inflight{Size: own(1, 128), Queues: 2, QueueSize: 128},
			256, []uint64{small}, 1024},
		{"ours, asked for the largest", vhost.Inflight{Size: 2 * large, Queues: 2, QueueSize: 1024},
			1024, []uint64{0, large}, 1024},
		{"former version, small rings", vhost.Inflight{Size: 2 * small, Queues: 2, QueueSize: 128},
			128, []uint64{0, small}, 128},
		{"former version, large rings", vhost.Inflight{Size: 2 * small, Queues: 2, QueueSize: 128},
			256, nil, 0},
		{"former version, made for fewer rings", vhost.Inflight{Size: small, Queues: 2,
			QueueSize: 128}, 128, []uint64{0}, 128},
		{"some other size, small rings", vhost.Inflight{Size: 1 << 20, Queues: 2, QueueSize: 128},
			64, []uint64{0, small}, 128},
		{"some other size, large rings", vhost.Inflight{Size: 1 << 20, Queues: 2, QueueSize: 128},
			1024, nil, 0},
		{"ours but for a byte", vhost.Inflight{Size: own(2, 128) - 1, Queues: 2, QueueSize: 128},
			256, nil, 0},
		{"for more rings than there can be", vhost.Inflight{Size: own(257, 128), Queues: 2,
			QueueSize: 128}, 256, nil, 0},
		{"beyond the largest ring", vhost.Inflight{Size: 2 * large, Queues: 2, QueueSize: 32768},
			1024, []uint64{0, large}, 1024},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, f, log := connectLogged(t, 4, frontend.Options{Queues: 2, QueueSize: tc.num,
				NoStart: true})
			fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
			must(t, "memfd", err)
			must(t, "truncate", unix.Ftruncate(fd, 8<<20))
			must(t, "set", f.SetInflight(fd, tc.desc))
			for round := range 2 { // one warning only
				must(t, "start", f.Start())
				must(t, "barrier", f.Barrier())
				for i := range 2 {
					q := s.be.queue(i)
					if i >= len(tc.at) {
						if q.Num != tc.num || q.Inflight != nil || q.InflightNum != 0 {
							t.Errorf("ring %d of %d: a region of %d bytes, expected none", i, q.Num,
								len(q.Inflight))
						}
						continue
					}
					if q.InflightNum != tc.region || len(q.Inflight) != virtq.InflightSize(
						tc.region) {
						t.Errorf("ring %d: a region of %d bytes for %d, expected %d", i,
							len(q.Inflight), q.InflightNum, tc.region)
						continue
					}
					mark := byte(10*round + i + 1)
					q.Inflight[0] = mark
					var got [1]byte
					_, err := unix.Pread(fd, got[:], int64(tc.at[i]))
					must(t, "read", err)
					if got[0] != mark {
						t.Errorf("ring %d: its region is not at %d", i, tc.at[i])
					}
				}
				must(t, "stop", f.Stop())
			}
			want := 0
			if len(tc.at) < 2 {
				want = 1
			}
			test.Equal(t, len(log.Values("buffer_descriptors")), want, "warnings about tracking")
			must(t, "abort", f.Abort())
			must(t, "Serve", s.wait())
		})
	}
}
