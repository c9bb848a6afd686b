package reopen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// cell is one row of the table: a disk with unflushed blocks.
type cell struct {
	name   string
	size   int64
	blocks func(size int64) []int64
}

func (s *settings) cells() (all []cell) {
	for _, size := range []int64{gib, tib, 64 * tib} {
		all = append(all,
			cell{sizeText(size) + ", few", size, func(size int64) []int64 {
				return scattered(size, 2)
			}},
			cell{sizeText(size) + ", many scattered", size, func(size int64) []int64 {
				return scattered(size, s.blocks)
			}},
			cell{sizeText(size) + ", many contiguous", size, func(size int64) []int64 {
				return contiguous(size, s.blocks)
			}},
		)
	}
	return all
}

// reopenResult holds one build's results for one cell.
type reopenResult struct {
	time, cpu []float64 // ms
	peak      []float64 // MiB
	record    int64     // bytes
	fill      time.Duration
}

// measureReopen prints the costs of processes that follow killed ones.
func measureReopen(ctx context.Context, s *settings) error {
	v, err := newVolume(ctx, s.dir, s.image)
	if err != nil {
		return err
	}
	defer v.close()
	t := newTable("disk, unflushed blocks", "4 KiB blocks", "served after, ms: before", "after",
		"CPU, ms: before", "after",
		"peak memory, MiB: before", "after", "record, MiB: before", "after", "load")
	for _, c := range s.cells() {
		if !strings.Contains(c.name, s.only) {
			continue
		}
		blocks := c.blocks(c.size)
		var r [2]*reopenResult
		load := loadNow()
		err := s.inTurn(0, func(i int, b *build) error {
			var err error
			r[i], err = s.reopen(ctx, v, b, &c, blocks)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		t.row(c.name, fmt.Sprint(len(blocks)), spread(r[0].time), spread(r[1].time),
			spread(r[0].cpu), spread(r[1].cpu),
			spread(r[0].peak), spread(r[1].peak), mib(r[0].record), mib(r[1].record),
			load+" to "+loadNow())
	}
	fmt.Printf("## Reopening after SIGKILL: median (least to most) of %d\n\n%s\n", s.reopens, t)
	return v.close()
}

func (s *settings) reopen(ctx context.Context, v *volume, b *build, c *cell,
	blocks []int64) (r *reopenResult, err error) {
	if err := v.fresh(ctx); err != nil {
		return nil, err
	}
	if err := b.create(ctx, v, c.size); err != nil {
		return nil, err
	}
	p, err := b.serve(v, b.noFlush...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if p != nil {
			err = errors.Join(err, p.kill())
		}
	}()
	guest, err := dial(p)
	if err != nil {
		return nil, err
	}
	defer guest.Abort()
	r = &reopenResult{}
	began := time.Now()
	if err := guest.write(blocks); err != nil {
		return nil, err
	}
	r.fill = time.Since(began)
	for range s.reopens {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		dead := p
		p = nil
		if err := dead.kill(); err != nil {
			return nil, err
		}
		if p, err = b.serve(v, b.noFlush...); err != nil {
			p = nil
			return nil, err
		}
		if err := guest.reconnect(p); err != nil {
			return nil, err
		}
		if err := guest.check(blocks[0]); err != nil {
			return nil, err
		}
		served := time.Since(p.started)
		u, err := p.usage()
		if err != nil {
			return nil, err
		}
		r.time, r.cpu, r.peak = append(r.time, ms(served)), append(r.cpu, ms(u.cpu)),
			append(r.peak, float64(u.peak)/(1<<20))
		if err := guest.checkSome(blocks); err != nil {
			return nil, err
		}
	}
	if r.record, err = v.record(); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "%s, %s: written in %v; served after %s ms, CPU %s ms, peak %s MiB, record %s MiB\n",
		c.name, b.name, r.fill.Round(time.Second), spread(r.time), spread(r.cpu), spread(r.peak),
		mib(r.record))
	return r, nil
}
