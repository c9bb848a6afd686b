package load

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
)

// listen serves back-ends on a socket, one connection at a time.
func listen(t *testing.T, be func() vhost.Backend) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	test.Must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			_ = vhost.Serve(c, be(), vhost.Options{})
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return socket
}

func null(queues int) func() vhost.Backend {
	return func() vhost.Backend { return newNull(queues) }
}

const short = 30 * time.Millisecond

// until runs ever longer loads until enough is counted for the test, because the machine may be
// busy.
func until(t *testing.T, enough func(sum *Report) bool, loads ...Options) ([]*Report, *Report) {
	t.Helper()
	for d := short; ; d *= 3 {
		for i := range loads {
			loads[i].Duration = d
		}
		reports, sum, err := RunAll(t.Context(), loads)
		test.Must(t, err)
		if enough(sum) || d > time.Minute {
			return reports, sum
		}
	}
}

func hundreds(sum *Report) bool { return sum.Requests > 300 }

func TestRun(t *testing.T) {
	for name, o := range map[string]Options{
		"defaults":   {},
		"polling":    {Poll: true, QueueDepth: 4},
		"mixed":      {RW: RandRW, QueueDepth: 8, FsyncEvery: 3},
		"sequential": {RW: Read, BlockSize: 128 << 10, QueueDepth: 8, Queues: 2},
		"deep":       {RW: Write, QueueDepth: maxDepth, BlockSize: 512},
		"spdk":       {Style: frontend.SPDK, QueueDepth: 16, Queues: 2},
		"area":       {RW: RandWrite, Size: 1 << 20, Offset: 1 << 30, BlockSize: 8192},
		"warm-up":    {Warmup: short},
	} {
		t.Run(name, func(t *testing.T) {
			o.Null = true
			_, r := until(t, hundreds, o)
			if r.Requests == 0 || r.Requests != r.Reads+r.Writes || r.Errors != 0 || r.IOPS <= 0 ||
				r.Elapsed < short {
				t.Errorf("%d requests (%d, %d), %d errors, %f per second in %v", r.Requests,
					r.Reads, r.Writes, r.Errors, r.IOPS, r.Elapsed)
			}
			if l := r.Latency; l.P50 <= 0 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 ||
				l.P999 > l.Max || l.Mean <= 0 {
				t.Errorf("latencies %+v", l)
			}
			if (r.Writes > 0) != o.Writes() || (r.ReadLatency != nil) != (o.RW == RandRW) ||
				(r.Flushes > 0) != (o.FsyncEvery > 0) ||
				(r.FlushLatency != nil) != (o.FsyncEvery > 0) {
				t.Errorf("%d reads, %d writes, %d flushes, latencies %v %v %v", r.Reads, r.Writes,
					r.Flushes, r.ReadLatency, r.WriteLatency, r.FlushLatency)
			}
			if r.CPUDriver <= 0 || r.CPUBackend == nil || r.BackendPID != os.Getpid() ||
				r.BackendNote == "" {
				t.Errorf("CPU %f, %v of process %d, note %q", r.CPUDriver, r.CPUBackend,
					r.BackendPID, r.BackendNote)
			}
			if !slices.IsSortedFunc(r.Distribution, func(a, b Quantile) int {
				return int(a.Latency - b.Latency)
			}) {
				t.Errorf("distribution %v", r.Distribution)
			}
			if wce := r.WriteCache; (wce == nil || !*wce) && o.Style == frontend.QEMU {
				t.Errorf("write cache %v", wce)
			}
		})
	}
}

// Each requester flushes after its number of writes, and the flushes are counted.
func TestFirstWriteWithFlushes(t *testing.T) {
	r, err := Run(t.Context(), Options{Null: true, RW: RandWrite, FirstWrite: true,
		Size: 1000 * 4096, QueueDepth: 1, FsyncEvery: 10})
	test.Must(t, err)
	if !r.Exhausted || r.Writes != 1000 || r.Flushes != 100 || r.FlushLatency == nil ||
		r.Elapsed <= 0 {
		t.Errorf("%d writes, %d flushes in %v, all: %t", r.Writes, r.Flushes, r.Elapsed,
			r.Exhausted)
	}
	r, err = Run(t.Context(), Options{Null: true, RW: RandWrite, FirstWrite: true, Duration: short,
		Queues: 2})
	if err != nil || r.Exhausted || r.Elapsed != short {
		t.Errorf("a whole terabyte in %v? %v", r.Elapsed, err)
	}
}

func TestRunAll(t *testing.T) {
	a, b := listen(t, null(1)), listen(t, null(2))
	// Bounded by blocks, not by time: both make progress.
	o := Options{RW: RandWrite, FirstWrite: true, QueueDepth: 4, Socket: a, Size: 4 << 20}
	p := o
	p.Socket, p.Queues = b, 2
	reports, sum, err := RunAll(t.Context(), []Options{o, p})
	test.Must(t, err)
	x, y := reports[0], reports[1]
	if x.Requests == 0 || y.Requests == 0 || sum.Requests != x.Requests+y.Requests ||
		sum.Sockets != 2 || sum.IOPS != x.IOPS+y.IOPS {
		t.Errorf("%d + %d requests are %d; %f per second", x.Requests, y.Requests, sum.Requests,
			sum.IOPS)
	}
	if sum.Latency.Max != max(x.Latency.Max, y.Latency.Max) {
		t.Errorf("longest of all %d, of each %d and %d", sum.Latency.Max, x.Latency.Max,
			y.Latency.Max)
	}
	// One process serves both: it is counted once, and each share is unknown.
	if x.CPUBackend == nil || y.CPUBackend != nil || y.BackendNote == "" || sum.CPUBackend == nil {
		t.Errorf("CPU of the back-ends: %v, %v (%s), %v", x.CPUBackend, y.CPUBackend, y.BackendNote,
			sum.CPUBackend)
	}
	if _, _, err := RunAll(t.Context(), nil); !errors.Is(err, ErrOptions) {
		t.Errorf("no back-end: %v", err)
	}
}

// wrongCapacity reports twice its disk's size.
type wrongCapacity struct{ *Null }

func (l wrongCapacity) Config(p []byte) error {
	err := l.Null.Config(p)
	binary.LittleEndian.PutUint64(p, 2*l.config.Sectors)
	return err
}

func TestErrorsAreCounted(t *testing.T) {
	small := func() vhost.Backend {
		n := newNull(1)
		n.config.Sectors = 1 << 30
		return wrongCapacity{n}
	}
	_, r := until(t, hundreds, Options{Socket: listen(t, small), QueueDepth: 8})
	if r.Errors < r.Requests/4 || r.Errors > r.Requests*3/4+8 {
		t.Errorf("%d errors of %d requests, expected about half", r.Errors, r.Requests)
	}
}

// idleBackend processes no ring.
type idleBackend struct{ *Null }

func (d idleBackend) StartQueue(q vhost.Queue) error {
	for _, fd := range []int{q.Kick, q.Call, q.Err} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return nil
}
func (d idleBackend) StopQueue(int) (uint16, error) { return 0, nil }
func (d idleBackend) SetCall(_, fd int)             { unix.Close(fd) }
func (d idleBackend) SetErr(_, fd int)              { unix.Close(fd) }

// leavingBackend closes its connection a while after a ring was started.
type leavingBackend struct {
	*Null
	conn *net.UnixConn
}

func (b leavingBackend) StartQueue(q vhost.Queue) error {
	time.AfterFunc(5*short, func() { b.conn.Close() })
	return b.Null.StartQueue(q)
}

func TestBackendFails(t *testing.T) {
	mute := listen(t, func() vhost.Backend { return idleBackend{newNull(1)} })
	for _, poll := range []bool{false, true} {
		_, err := Run(t.Context(), Options{Socket: mute, Poll: poll, QueueDepth: 3,
			Timeout: 500 * time.Millisecond})
		if !errors.Is(err, frontend.ErrTimeout) || !strings.Contains(err.Error(), mute) {
			t.Errorf("nothing comes back: %v", err)
		}
	}
	// The back-end disconnects during a load.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"),
		Net: "unix"})
	test.Must(t, err)
	defer l.Close()
	for _, poll := range []bool{false, true} {
		gone := make(chan error)
		go func() {
			c, err := l.AcceptUnix()
			if err == nil {
				err = vhost.Serve(c, leavingBackend{newNull(1), c}, vhost.Options{})
			}
			gone <- err
		}()
		_, err := Run(t.Context(), Options{Socket: l.Addr().String(), Poll: poll,
			Timeout: 10 * time.Second})
		test.ErrorIs(t, err, frontend.ErrDisconnected, "closed connection")
		test.Check(t, <-gone)
	}
	test.ErrorIs(t, test.Err(Run(t.Context(), Options{Socket: "/nonexistent/socket"})),
		os.ErrNotExist, "no socket")
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	r, err := Run(ctx, Options{Null: true, Duration: time.Hour, QueueDepth: 2})
	if err != nil || !r.Interrupted || r.Elapsed >= time.Hour {
		t.Errorf("%+v, %v", r, err)
	}
	// Also if the back-end does not answer any more.
	mute := listen(t, func() vhost.Backend { return idleBackend{newNull(1)} })
	ctx, cancel = context.WithTimeout(t.Context(), short)
	defer cancel()
	_, err = Run(ctx, Options{Socket: mute})
	if test.Texts(t, "load.texts")(t, "interrupted, and mute", err); !errors.Is(err,
		frontend.ErrDisconnected) {
		t.Errorf("%v", err)
	}
}

// Unsupported operations are reported before anything is written.
func TestTargets(t *testing.T) {
	off := false
	readOnly := listen(t, func() vhost.Backend {
		n := newNull(1)
		n.config.ReadOnly = true
		n.config.SizeMax = 8192
		return n
	})
	for name, o := range map[string]Options{
		"read-only":   {RW: RandWrite},
		"size_max":    {BlockSize: 16384},
		"cache":       {WCE: &off}, // the null back-end refuses
		"cache, SPDK": {WCE: &off, Style: frontend.SPDK},
	} {
		o.Socket = readOnly
		if _, err := Run(t.Context(), o); !errors.Is(err, ErrTarget) &&
			!errors.Is(err, frontend.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, o := range map[string]Options{
		"beyond the end": {Offset: nullSize},
		"too large":      {Size: nullSize + 512},
		"no block":       {Size: 512},
		"many queues":    {RW: Read, Size: 4096, Queues: 2},
	} {
		o.Null = true
		test.ErrorIs(t, test.Err(Run(t.Context(), o)), ErrOptions, name)
	}
	test.ErrorIs(t, test.Err(Run(t.Context(), Options{Null: true, RW: RandWrite, FsyncEvery: 1,
		Style: frontend.SPDK})), ErrTarget, "no FLUSH")
}

// A request allocates nothing: twenty times the requests allocate the same amount.
func TestNoAllocation(t *testing.T) {
	count := func(blocks int64) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Run(t.Context(), Options{Null: true, RW: RandWrite, FirstWrite: true,
			Size: blocks * 4096, QueueDepth: 8, FsyncEvery: 4})
		runtime.ReadMemStats(&after)
		test.Must(t, err)
		return after.Mallocs - before.Mallocs
	}
	few, many := count(1000), count(20_000)
	if many > few+500 {
		t.Errorf("%d allocations for 1,000 requests, %d for 20,000", few, many)
	}
}

func TestReportIsJSON(t *testing.T) {
	_, r := until(t, hundreds, Options{Null: true, Style: frontend.SPDK})
	b, err := json.Marshal(r)
	test.Must(t, err)
	var back Report
	test.Must(t, json.Unmarshal(b, &back))
	if back.Options != r.Options || back.Latency != r.Latency || back.Requests != r.Requests ||
		*back.CPUBackend != *r.CPUBackend {
		t.Errorf("%s", b)
	}
	for _, key := range []string{"iops", "bytes_per_second", "latency", "errors",
		"cpu_driver_ns_per_request", "cpu_backend_ns_per_request", "backend_pid"} {
		if !strings.Contains(string(b), `"`+key+`":`) {
			t.Errorf("no %s in %s", key, b)
		}
	}
}

// The driver and the null back-end together, with all measurements of a load.
func BenchmarkNull(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		b.Run("QD"+strconv.Itoa(depth), func(b *testing.B) {
			var best float64
			for b.Loop() {
				r, err := Run(b.Context(), Options{Null: true, QueueDepth: depth, Poll: true,
					Duration: time.Second})
				test.Must(b, err)
				best = max(best, r.IOPS)
			}
			b.ReportMetric(best, "req/s")
		})
	}
}

// The cost of recording one latency.
func BenchmarkRecord(b *testing.B) {
	h := newHistogram()
	r := newRandom(1, 0)
	for b.Loop() {
		_ = h.RecordValue(int64(5000 + r.below(100_000)))
	}
}
