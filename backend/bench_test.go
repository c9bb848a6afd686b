package backend

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// From the driver's Submit to its Poll: 4 KiB reads at random places of a base that is in memory,
// through a real socket, rings and eventfds. Front-end and back-end are one process, so cpu-ns/op
// is that of both sides.
func BenchmarkEndToEnd(b *testing.B) {
	for _, load := range []struct {
		name    string
		depth   int
		polling bool          // the driver; otherwise it waits for calls
		think   time.Duration // from a completion to the next request
	}{
		{"QD1-blocking", 1, false, 0},
		{"QD1-polling", 1, true, 0},
		{"QD32-blocking", 32, false, 0},
		{"QD32-polling", 32, true, 0},
		{"think20us", 1, true, 20 * time.Microsecond},
		{"think100us", 1, true, 100 * time.Microsecond},
	} {
		for _, poll := range []time.Duration{0, 50 * time.Microsecond} {
			b.Run(fmt.Sprintf("load=%s/poll=%v", load.name, poll), func(b *testing.B) {
				// What processors does for a daemon: both sides spin, and the rest.
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
				s := serve(b, DeviceOptions{Poll: poll})
				f := s.dial(frontend.Options{Poll: load.polling})
				defer f.Close()
				d := f.Driver(0)
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				flood(b, d, 2000, load.depth, 0) // warm
				before := s.dev.Stats()
				b.ReportAllocs()
				b.ResetTimer()
				used := cpuTime(b)
				flood(b, d, b.N, load.depth, load.think)
				used = cpuTime(b) - used
				b.StopTimer()
				after := s.dev.Stats()
				n := float64(b.N)
				b.ReportMetric(n/b.Elapsed().Seconds(), "req/s")
				b.ReportMetric(float64(used.Nanoseconds())/n, "cpu-ns/op")
				b.ReportMetric(float64(after.PollTime-before.PollTime)/n, "spun-ns/op")
			})
		}
	}
}

// flood keeps depth reads in flight until n have come back.
func flood(b *testing.B, d *frontend.Driver, n, depth int, think time.Duration) {
	done := make([]frontend.Completion, 0, d.Slots())
	random := uint64(1)
	submit := func(slot int) {
		random = random*6364136223846793005 + 1442695040888963407
		test.Must(b, d.Submit(slot, frontend.OpRead, int64(random>>33)%(testDisk/4096)*4096, 4096))
	}
	sent, back := 0, 0
	for ; sent < min(depth, n); sent++ {
		submit(sent)
	}
	for back < n {
		test.Must(b, d.Kick())
		test.Must(b, d.Wait())
		done = d.Poll(done[:0])
		back += len(done)
		if think > 0 {
			for start := time.Now(); time.Since(start) < think; {
			}
		}
		for _, c := range done {
			if c.Status != frontend.StatusOK {
				b.Fatalf("status %d", c.Status)
			}
			if sent < n {
				submit(c.ID)
				sent++
			}
		}
	}
}

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	test.Must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
