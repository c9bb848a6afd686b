package compare

import (
	"context"
	"math/rand/v2"
	"time"

	"cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
	"cowblk/vhost/frontend"
)

// firstTouchQD is the number of first reads in flight.
const firstTouchQD = 32

// firstTouch returns reads of a cached base by servers that have just been started: each block of
// the area is read once, in random order.
func (s *site) firstTouch() []task {
	one := func(key, label string, quick bool, make maker) task {
		return task{key, label, report.FirstTouch, quick, func(ctx context.Context,
			round int) (report.Sample, error) {
			return s.onFresh(ctx, make, func(b *harness.Backend) (report.Sample, error) {
				return touch(ctx, b, shuffled(s.area, uint64(round)))
			})
		}}
	}
	return []task{
		one(report.FreshHead, "cowblk, fresh head", true, s.freshDisk),
		one(report.FreshRaw, "qemu raw", true, s.freshRaw),
		one(report.FreshQcow2, "qemu qcow2, fresh overlay", false, s.freshOverlay),
	}
}

// shuffled returns all blocks of an area in random order.
func shuffled(area int64, seed uint64) []int {
	return rand.New(rand.NewPCG(7, seed)).Perm(int(area / blockSize))
}

// touch reads blocks once.
func touch(ctx context.Context, b *harness.Backend, blocks []int) (sample report.Sample,
	err error) {
	f, err := connectBlocks(b.Socket, firstTouchQD, true)
	if err != nil {
		return sample, err
	}
	defer f.Abort()
	w := &sweep{op: frontend.OpRead, blocks: blocks, depth: firstTouchQD,
		latencies: newHistogram()}
	before, err := cpuTime(b.PID())
	if err != nil {
		return sample, err
	}
	start := time.Now()
	if _, err := w.run(ctx, f.Driver(0)); err != nil {
		return sample, err
	}
	took := time.Since(start)
	after, err := cpuTime(b.PID())
	if err != nil {
		return sample, err
	}
	sample = histogramSample(w.latencies, took, blockSize)
	sample.Server = float64(after-before) / float64(len(blocks))
	return sample, nil
}
