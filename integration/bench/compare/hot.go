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

// Hot reads are issued at a constant rate, and their latency counts from the time when they were
// due. A stall of the queue is then seen by every request that it delays, not by one. Cold reads go
// through the same queue, several at a time, to blocks that have not been read before.
const (
	hotPace  = 50 * time.Microsecond
	hotSlots = 32
	coldQD   = 16

	minColdTime = 5 * time.Millisecond // least mean latency of a cold read on a throttled disk
	hotBytes    = 64 * mib             // from the start of the disk
)

// slowBase is the image whose cold part is not in the page cache.
const slowBase = "slow.img"

// hotReads returns a hot stream without and with a cold one on the same queue.
func (s *site) hotReads() []task {
	one := func(workload string, cold bool) task {
		return task{report.SlowStack, "cowblk, depth 1", workload, true, func(ctx context.Context,
			round int) (report.Sample, error) {
			if s.servers[report.SlowStack] == nil {
				if err := s.serveSlow(ctx); err != nil {
					return report.Sample{}, err
				}
			}
			// Every sample has its own part of the cold blocks.
			part := (s.size - hotBytes) / int64(s.settings.rounds)
			return s.paced(ctx, cold, extent{hotBytes + part*int64(round), part})
		}}
	}
	return []task{one(report.HotAlone, false), one(report.HotWithCold, true)}
}

func (s *site) serveSlow(ctx context.Context) error {
	path := s.path(slowBase)
	if err := writeRandom(ctx, path, s.size); err != nil {
		return err
	}
	if err := dropCache(path); err != nil {
		return err
	}
	if _, err := s.store().Run(ctx, "create", "slow", "--base", path); err != nil {
		return err
	}
	if err := s.startServer(ctx, report.SlowStack, s.serve("slow")); err != nil {
		return err
	}
	if err := readAll(ctx, path, hotBytes); err != nil {
		return err
	}
	undo, err := slowDisk(s.dir, s.servers[report.SlowStack].PID())
	if err != nil {
		s.results.Notes = append(s.results.Notes, fmt.Sprintf(
			"Cold reads beside hot ones: the disk could not be throttled (%v) and has its own latency.", err))
		return nil
	}
	s.results.Notes = append(s.results.Notes, fmt.Sprintf(
		"Cold reads beside hot ones: %d in flight on the hot reads' queue, the disk throttled to %d reads/s by a control group, so that each takes a large part of a second.",
		coldQD, slowReads))
	s.cold.slowed = true
	s.closers = append(s.closers, undo)
	return nil
}

// paced takes one sample of hot reads.
func (s *site) paced(ctx context.Context, withCold bool, cold extent) (sample report.Sample,
	err error) {
	f, err := frontend.Dial(s.servers[report.SlowStack].Socket, frontend.Options{Timeout: patience,
		Poll: true, Memory: 16 * mib})
	if err != nil {
		return sample, err
	}
	p := &pacer{driver: f.Driver(0), cold: cold, histogram: newHistogram(),
		random: rand.New(rand.NewPCG(4, uint64(cold.offset)))}
	for slot := range hotSlots {
		p.free = append(p.free, slot)
	}
	if withCold {
		for slot := range coldQD {
			if err := p.miss(hotSlots + slot); err != nil {
				f.Abort()
				return sample, err
			}
		}
	}
	start := time.Now()
	if err := p.run(ctx, s.time); err != nil {
		f.Abort()
		return sample, err
	}
	if withCold {
		s.cold.time += time.Since(start)
	}
	if err := f.Close(); err != nil {
		return sample, err
	}
	if withCold && s.cold.slowed && p.waited < time.Duration(p.done)*minColdTime {
		return sample, fmt.Errorf(
			"misses beside hot reads: expected at least %s for each on the slow disk, found %s: they were in memory", minColdTime, p.waited/time.Duration(p.done))
	}
	s.cold.done += p.done
	s.cold.wait += p.waited
	return histogramSample(p.histogram, s.time, blockSize), nil
}

// coldFigures records how slow the misses beside the hot reads were.
func (s *site) coldFigures() {
	if s.cold.done == 0 {
		return
	}
	s.results.AddSingle(report.ColdRate, "cold reads completed beside hot reads",
		float64(s.cold.done)/s.cold.time.Seconds(), "/s")
	s.results.AddSingle(report.ColdLatency, "their mean latency",
		float64(s.cold.wait)/float64(s.cold.done)/1e6, "ms")
}

const blockSize = 4 << 10

// pacer keeps both streams going on one queue. Slots from hotSlots on are cold.
type pacer struct {
	driver    *frontend.Driver
	random    *rand.Rand
	cold      extent
	histogram *hdrhistogram.Histogram
	free      []int
	due       [hotSlots]time.Duration
	returned  []frontend.Completion
	ended     bool

	// Of the cold reads: times of issue, number completed, and sum of their latencies.
	issued [coldQD]time.Time
	done   int
	waited time.Duration
}

// miss issues a cold read.
func (p *pacer) miss(slot int) error {
	p.issued[slot-hotSlots] = time.Now()
	return p.driver.Submit(slot, frontend.OpRead,
		p.cold.offset+p.random.Int64N(p.cold.length/blockSize)*blockSize, blockSize)
}

// run runs the streams until limit, and then until all requests have completed.
func (p *pacer) run(ctx context.Context, limit time.Duration) error {
	start := time.Now()
	next := time.Duration(0)
	for {
		now := time.Since(start)
		if now >= limit+patience {
			return fmt.Errorf("%d requests have not completed", p.driver.InFlight())
		}
		p.ended = now >= limit || ctx.Err() != nil
		if p.ended && p.driver.InFlight() == 0 {
			return ctx.Err()
		}
		for ; !p.ended && next <= now && len(p.free) > 0; next += hotPace {
			slot := p.free[len(p.free)-1]
			p.free = p.free[:len(p.free)-1]
			p.due[slot] = next
			if err := p.driver.Submit(slot, frontend.OpRead,
				p.random.Int64N(hotBytes/blockSize)*blockSize, blockSize); err != nil {
				return err
			}
		}
		if err := p.driver.Kick(); err != nil {
			return err
		}
		if err := p.complete(start); err != nil {
			return err
		}
	}
}

// complete records completed requests.
func (p *pacer) complete(start time.Time) error {
	p.returned = p.driver.Poll(p.returned[:0])
	if err := p.driver.Err(); err != nil {
		return err
	}
	now := time.Since(start)
	for _, c := range p.returned {
		if c.Status != frontend.StatusOK {
			return fmt.Errorf("a read completed with status %d", c.Status)
		}
		if c.ID < hotSlots {
			p.free = append(p.free, c.ID)
			record(p.histogram, now-p.due[c.ID])
			continue
		}
		p.done++
		p.waited += time.Since(p.issued[c.ID-hotSlots])
		if p.ended {
			continue
		}
		if err := p.miss(c.ID); err != nil {
			return err
		}
	}
	return nil
}
