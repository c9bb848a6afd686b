package compare

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"cowblk/integration/bench/compare/report"
	"cowblk/vhost/frontend"
)

// writeThenRead returns pairs of an overwrite of a random block and a read of the same block, one
// request at a time. The rate is that of the pairs, the latency that of the read.
func (s *site) writeThenRead() task {
	return task{report.Head(1), stackLabel(1), report.WriteThenRead, true,
		func(ctx context.Context, round int) (sample report.Sample, err error) {
			b := s.servers[report.Head(1)]
			f, err := connect(b.Socket)
			if err != nil {
				return sample, err
			}
			p := &pairs{driver: f.Driver(0), blocks: s.area / blockSize, latencies: newHistogram(),
				random: rand.New(rand.NewPCG(9, uint64(round)))}
			before, err := cpuTime(b.PID())
			if err == nil {
				sample, err = p.run(ctx, s.time)
			}
			var after time.Duration
			if err == nil {
				after, err = cpuTime(b.PID())
			}
			if err == nil {
				err = f.Driver(0).Flush()
			}
			if err != nil {
				f.Abort()
				return sample, err
			}
			sample.Server = float64(after-before) / float64(sample.Requests)
			return sample, f.Close()
		}}
}

// pairs writes blocks, each with a number of its own, and reads them back.
type pairs struct {
	driver    *frontend.Driver
	random    *rand.Rand
	blocks    int64 // of the area
	latencies *hdrhistogram.Histogram
	done      []frontend.Completion
}

// Slots of the driver.
const (
	writeSlot = iota
	readSlot
)

func (p *pairs) run(ctx context.Context, limit time.Duration) (sample report.Sample, err error) {
	written, read := p.driver.Buffer(writeSlot), p.driver.Buffer(readSlot)
	randomBytes(written[:blockSize], 0)
	start := time.Now()
	now := start
	for number := uint64(1); now.Sub(start) < limit; number++ {
		if ctx.Err() != nil {
			return sample, ctx.Err()
		}
		binary.LittleEndian.PutUint64(written, number)
		offset := p.random.Int64N(p.blocks) * blockSize
		if err := p.request(writeSlot, frontend.OpWrite, offset); err != nil {
			return sample, err
		}
		issued := time.Now()
		if err := p.request(readSlot, frontend.OpRead, offset); err != nil {
			return sample, err
		}
		now = time.Now()
		record(p.latencies, now.Sub(issued))
		if found := binary.LittleEndian.Uint64(read); found != number {
			return sample, fmt.Errorf("block at %d: wrote number %d, read %d", offset, number,
				found)
		}
	}
	return histogramSample(p.latencies, now.Sub(start), 2*blockSize), nil
}

// request makes one request and waits for it.
func (p *pairs) request(slot int, op frontend.Op, offset int64) (err error) {
	if err := p.driver.Submit(slot, op, offset, blockSize); err != nil {
		return err
	}
	p.done, err = await(p.driver, p.done[:0])
	return err
}
