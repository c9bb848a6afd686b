package reopen

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"cowblk/vhost/frontend"
)

// takeoverSize is the size of the disk that is taken over, in bytes.
const takeoverSize = gib

// takeoverSpan is the number of bytes, from the start of the disk, that the load uses.
const takeoverSpan = 16 << 20

// takeoverDepth is the number of requests in flight.
const takeoverDepth = 16

// measureTakeover prints how long requests wait during a takeover.
func measureTakeover(ctx context.Context, s *settings) error {
	v, err := newVolume(ctx, s.dir, 0)
	if err != nil {
		return err
	}
	defer v.close()
	t := newTable("disk of 1 GiB", "gap at the front-end, ms: before", "after", "ratio",
		"after_ms of the old process: before", "after",
		"longest gap without a takeover, ms: before", "after", "load")
	for _, dirty := range []int64{0, takeoverSize} {
		var gaps, told, quiet [2][]float64
		load := loadNow()
		for round := range s.rounds {
			err := s.inTurn(round, func(i int, b *build) error {
				g, err := takeOver(ctx, v, b, dirty)
				gaps[i], told[i], quiet[i] = append(gaps[i], g.gap), append(told[i], g.reported),
					append(quiet[i], g.quiet)
				return err
			})
			if err != nil {
				return err
			}
		}
		name := "little unflushed (16 MiB)"
		if dirty > 0 {
			name = "1 GiB unflushed"
		}
		t.row(name, spread(gaps[0]), spread(gaps[1]), number(median(ratios(gaps[0], gaps[1]))),
			spread(told[0]), spread(told[1]),
			spread(quiet[0]), spread(quiet[1]), load+" to "+loadNow())
	}
	fmt.Printf("## Takeover under load (half reads, half writes, 4 KiB, %d in flight): median (least to most) of %d\n\n%s\n", takeoverDepth, s.rounds, t)
	return v.close()
}

// takeoverSample holds the times of one takeover, in ms.
type takeoverSample struct{ gap, reported, quiet float64 }

var afterMS = regexp.MustCompile(`\bafter_ms=(\d+)`)

func takeOver(ctx context.Context, v *volume, b *build, dirty int64) (r takeoverSample, err error) {
	if err := v.fresh(ctx); err != nil {
		return r, err
	}
	if err := b.create(ctx, v, takeoverSize); err != nil {
		return r, err
	}
	first, err := b.serve(v, b.noFlush...)
	if err != nil {
		return r, err
	}
	serving := []*server{first}
	defer func() {
		for _, p := range serving {
			err = errors.Join(err, p.kill())
		}
	}()
	guest, err := dial(first)
	if err != nil {
		return r, err
	}
	defer guest.Abort()
	if err := guest.write(contiguous(max(dirty, takeoverSpan),
		int(max(dirty, takeoverSpan)/blockSize))); err != nil {
		return r, err
	}
	l := &gapLoad{client: guest, ended: make(chan error, 1)}
	go func() { l.ended <- l.run() }()
	time.Sleep(300 * time.Millisecond)
	r.quiet = l.longest()
	second, err := b.serve(v, append([]string{"--takeover"}, b.noFlush...)...)
	if err != nil {
		return r, errors.Join(err, l.finish())
	}
	serving = append(serving, second)
	// The old process ends once the new one serves.
	werr := first.cmd.Wait()
	serving = serving[1:]
	time.Sleep(100 * time.Millisecond)
	r.gap = l.longest()
	if err := errors.Join(first.explain(werr), l.finish()); err != nil {
		return r, err
	}
	m := afterMS.FindSubmatch(first.log.Bytes())
	if m == nil || l.reconnects != 1 {
		return r, fmt.Errorf("expected one takeover, found %d reconnections and the log\n%s",
			l.reconnects, first.log.String())
	}
	r.reported, err = strconv.ParseFloat(string(m[1]), 64)
	return r, err
}

// gapLoad keeps requests in flight from its own goroutine, and records the longest time without a
// completion.
type gapLoad struct {
	*client
	most       atomic.Int64 // longest gap, in ns
	stop       atomic.Bool
	reconnects int
	ended      chan error
}

// longest returns the longest gap since the last call, in ms.
func (l *gapLoad) longest() float64 { return ms(time.Duration(l.most.Swap(0))) }

func (l *gapLoad) finish() error {
	l.stop.Store(true)
	return <-l.ended
}

func (l *gapLoad) run() error {
	for slot := range takeoverDepth {
		if err := l.submit(slot); err != nil {
			return err
		}
	}
	d := l.Driver(0)
	last := time.Now()
	done := make([]frontend.Completion, 0, takeoverDepth)
	for d.InFlight() > 0 {
		err := d.Kick()
		if err == nil {
			err = d.Wait()
		}
		if errors.Is(err, frontend.ErrDisconnected) {
			if err := l.again(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		done = d.Poll(done[:0])
		now := time.Now()
		if gap := int64(now.Sub(last)); gap > l.most.Load() {
			l.most.Store(gap)
		}
		last = now
		for _, r := range done {
			if r.Status != frontend.StatusOK {
				return fmt.Errorf("a request completed with status %d", r.Status)
			}
			if l.stop.Load() {
				continue
			}
			if err := l.submit(r.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *gapLoad) submit(slot int) error {
	op := frontend.OpRead
	if rand.Uint32()&1 == 0 {
		op = frontend.OpWrite
	}
	return l.Driver(0).Submit(slot, op, rand.Int64N(takeoverSpan/blockSize)*blockSize, blockSize)
}

func (l *gapLoad) again() error {
	l.reconnects++
	for end := time.Now().Add(patience); ; time.Sleep(dialPause) {
		if err := l.Reconnect(l.socket); err == nil || time.Now().After(end) {
			return err
		}
	}
}
