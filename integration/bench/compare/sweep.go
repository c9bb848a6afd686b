package compare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"cowblk/integration/bench/compare/report"
	"cowblk/vhost/frontend"
)

// sweep requests every block of a list once.
type sweep struct {
	op     frontend.Op
	blocks []int // of blockSize bytes, in the order of the requests
	depth  int   // requests in flight
	end    time.Time
	// latencies of the completed requests; nil: not recorded
	latencies *hdrhistogram.Histogram
}

// run returns the number of requests that completed before the end; the zero end is never.
func (w *sweep) run(ctx context.Context, d *frontend.Driver) (completed int, err error) {
	issued := make([]time.Time, w.depth)
	left := w.blocks
	next := func(slot int, now time.Time) error {
		if len(left) == 0 {
			return nil
		}
		issued[slot] = now
		block := int64(left[0])
		left = left[1:]
		return d.Submit(slot, w.op, block*blockSize, blockSize)
	}
	now := time.Now()
	for slot := range w.depth {
		if w.op == frontend.OpWrite {
			randomBytes(d.Buffer(slot)[:blockSize], uint64(slot))
		}
		if err := next(slot, now); err != nil {
			return 0, err
		}
	}
	var done []frontend.Completion
	for d.InFlight() > 0 {
		if done, err = await(d, done[:0]); err != nil {
			return completed, err
		}
		now = time.Now()
		if ctx.Err() != nil || !w.end.IsZero() && !now.Before(w.end) {
			return completed, ctx.Err()
		}
		for _, c := range done {
			completed++
			if w.latencies != nil {
				record(w.latencies, now.Sub(issued[c.ID]))
			}
			if err := next(c.ID, now); err != nil {
				return completed, err
			}
		}
	}
	return completed, nil
}

// connectBlocks connects a front-end for requests of one block each.
func connectBlocks(socket string, depth int, poll bool) (*frontend.Frontend, error) {
	return frontend.Dial(socket, frontend.Options{Timeout: patience, Memory: 2 * mib, Slots: depth,
		MaxTransfer: blockSize, Poll: poll})
}

// await exposes the submitted requests and waits for completions.
func await(d *frontend.Driver, done []frontend.Completion) ([]frontend.Completion, error) {
	if err := d.Kick(); err != nil {
		return nil, err
	}
	if err := d.Wait(); err != nil {
		return nil, err
	}
	done = d.Poll(done)
	for _, c := range done {
		if c.Status != frontend.StatusOK {
			return nil, fmt.Errorf("a request completed with status %d", c.Status)
		}
	}
	return done, d.Err()
}

// randomBytes fills b with bytes that depend on the seed.
func randomBytes(b []byte, seed uint64) {
	source := rand.NewPCG(6, seed)
	for i := range b {
		b[i] = byte(source.Uint64())
	}
}

// longest is the longest latency that a histogram distinguishes.
const longest = time.Minute

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(longest), 3) }

// record counts a latency.
func record(h *hdrhistogram.Histogram, latency time.Duration) {
	_ = h.RecordValue(int64(min(max(latency, 1), longest))) // cannot fail: within the bounds
}

// histogramSample returns a sample of requests of size bytes that completed within took.
func histogramSample(h *hdrhistogram.Histogram, took time.Duration, size int) report.Sample {
	rate := float64(h.TotalCount()) / took.Seconds()
	return report.Sample{
		Requests: uint64(h.TotalCount()), IOPS: rate, Bytes: rate * float64(size),
		Latency: report.Latencies{
			Mean: h.Mean(), P50: float64(h.ValueAtQuantile(50)),
			P90: float64(h.ValueAtQuantile(90)), P99: float64(h.ValueAtQuantile(99)),
			P999: float64(h.ValueAtQuantile(99.9)), Max: float64(h.Max()),
		},
	}
}
