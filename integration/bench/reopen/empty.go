package reopen

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"cowblk/backend/control"
)

// emptySize is the size of the empty disk, in bytes.
const emptySize = 64 * tib

// emptySample holds one build's costs of an empty disk: times and CPU in ms, sizes in bytes.
type emptySample struct {
	create, serve, cpu, peak, promote, sealed float64
	created, record, promoted, records        int64
}

// measureEmpty prints the costs of creating, serving and promoting an empty disk.
func measureEmpty(ctx context.Context, s *settings) error {
	v, err := newVolume(ctx, s.dir, s.image)
	if err != nil {
		return err
	}
	defer v.close()
	var all [2][]emptySample
	load := loadNow()
	for round := range s.reopens {
		err := s.inTurn(round, func(i int, b *build) error {
			e, err := emptyDisk(ctx, v, b)
			all[i] = append(all[i], e)
			return err
		})
		if err != nil {
			return err
		}
	}
	t := newTable("empty disk of "+sizeText(emptySize), "before", "after")
	row := func(what string, of func(e emptySample) float64) {
		var cells [2]string
		for i := range all {
			var values []float64
			for _, e := range all[i] {
				values = append(values, of(e))
			}
			cells[i] = spread(values)
		}
		t.row(what, cells[0], cells[1])
	}
	row("create, ms", func(e emptySample) float64 { return e.create })
	row("the store then, MiB allocated", func(e emptySample) float64 {
		return float64(e.created) / (1 << 20)
	})
	row("served after, ms", func(e emptySample) float64 { return e.serve })
	row("CPU until then, ms", func(e emptySample) float64 { return e.cpu })
	row("peak memory until then, MiB", func(e emptySample) float64 { return e.peak })
	row("record of unflushed blocks, MiB", func(e emptySample) float64 {
		return float64(e.record) / (1 << 20)
	})
	row("promotion, command to reply, ms", func(e emptySample) float64 { return e.promote })
	row("promotion, command to sealed, ms", func(e emptySample) float64 { return e.sealed })
	row("the store then, MiB allocated", func(e emptySample) float64 {
		return float64(e.promoted) / (1 << 20)
	})
	row("records then, MiB", func(e emptySample) float64 { return float64(e.records) / (1 << 20) })
	fmt.Printf("## An empty disk: median (least to most) of %d, load %s to %s\n\n%s\n", s.reopens,
		load, loadNow(), t)
	return v.close()
}

func emptyDisk(ctx context.Context, v *volume, b *build) (e emptySample, err error) {
	if err := v.fresh(ctx); err != nil {
		return e, err
	}
	began := time.Now()
	if err := b.create(ctx, v, emptySize); err != nil {
		return e, err
	}
	e.create = ms(time.Since(began))
	if e.created, err = v.allocated("disks", "layers"); err != nil {
		return e, err
	}
	p, err := b.serve(v)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	guest, err := dial(p)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, guest.Close()) }()
	if _, err := guest.Driver(0).ReadAt(make([]byte, blockSize), emptySize/2); err != nil {
		return e, err
	}
	e.serve = ms(time.Since(p.started))
	u, err := p.usage()
	if err != nil {
		return e, err
	}
	e.cpu, e.peak = ms(u.cpu), float64(u.peak)/(1<<20)
	if e.record, err = v.record(); err != nil {
		return e, err
	}
	if err := e.promotion(ctx, v); err != nil {
		return e, err
	}
	if e.promoted, err = v.allocated("disks", "layers"); err != nil {
		return e, err
	}
	e.records, err = v.record()
	return e, err
}

// promotion promotes the disk and waits until the former head is sealed.
func (e *emptySample) promotion(ctx context.Context, v *volume) error {
	client, err := control.Dial(filepath.Join(v.store, "run", diskName+".ctl"), patience)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	events, err := client.Events(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := client.Run(ctx, "cow-promote", map[string]any{"disks": []string{diskName},
		"tag": "empty"}, nil); err != nil {
		return err
	}
	e.promote = ms(time.Since(began))
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return errors.New("the control socket was closed before the former head was sealed")
			}
			if event.Event == "COW_SEALED" {
				e.sealed = ms(time.Since(began))
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("the former head was not sealed: %w", ctx.Err())
		}
	}
}
