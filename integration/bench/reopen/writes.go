package reopen

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"cowblk/vhost/load"
)

// writesSize is the size of the measured disk, in bytes.
const writesSize = gib

// writeLoad is one kind of load.
type writeLoad struct {
	name    string
	o       load.Options
	written bool // each block of the disk was written and flushed before
}

func writings() []writeLoad {
	const window = 3 * time.Second
	return []writeLoad{
		{"first write, QD1", load.Options{FirstWrite: true}, false},
		{"first write, QD32", load.Options{FirstWrite: true, QueueDepth: 32}, false},
		{"overwrite, QD1", load.Options{Duration: window, Warmup: window / 10}, true},
		{"overwrite, QD32", load.Options{Duration: window, Warmup: window / 10, QueueDepth: 32},
			true},
		{"first write and flush, QD1", load.Options{FirstWrite: true, Duration: window,
			FsyncEvery: 1}, false},
		{"overwrite and flush, QD1", load.Options{Duration: window, Warmup: window / 10,
			FsyncEvery: 1}, true},
	}
}

// measureWrites prints the rates of writes.
func measureWrites(ctx context.Context, s *settings) error {
	v, err := newVolume(ctx, s.dir, 0)
	if err != nil {
		return err
	}
	defer v.close()
	t := newTable("4 KiB", "µs per request: before", "after", "ratio (of neighbours)",
		"CPU of the back-end, µs: before", "after", "ratio", "load")
	for _, w := range writings() {
		w.o.RW, w.o.Poll = load.RandWrite, true
		var times, cpu [2][]float64
		began := loadNow()
		for round := range s.rounds {
			err := s.inTurn(round, func(i int, b *build) error {
				r, err := w.sample(ctx, v, b)
				if err != nil {
					return err
				}
				times[i], cpu[i] = append(times[i], 1e6/r.IOPS), append(cpu[i], *r.CPUBackend/1e3)
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "%s: %s and %s µs, ratio %s; CPU ratio %s; load %s to %s\n", w.name,
			spread(times[0]), spread(times[1]),
			spread(ratios(times[0], times[1])), spread(ratios(cpu[0], cpu[1])), began, loadNow())
		t.row(w.name, spread(times[0]), spread(times[1]), spread(ratios(times[0], times[1])),
			spread(cpu[0]), spread(cpu[1]), spread(ratios(cpu[0], cpu[1])), began+" to "+loadNow())
	}
	fmt.Printf("## Writes: median (least to most) of %d; ratios are after/before, more than 1 is slower\n\n%s\n", s.rounds, t)
	return v.close()
}

func (w *writeLoad) sample(ctx context.Context, v *volume, b *build) (r *load.Report, err error) {
	if err := v.fresh(ctx); err != nil {
		return nil, err
	}
	if err := b.create(ctx, v, writesSize); err != nil {
		return nil, err
	}
	p, err := b.serve(v)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.kill()) }()
	guest, err := dial(p)
	if err != nil {
		return nil, err
	}
	if w.written {
		err = guest.write(contiguous(writesSize, int(writesSize/blockSize)))
		if err == nil {
			err = guest.Driver(0).Flush()
		}
	}
	if err := errors.Join(err, guest.Close()); err != nil {
		return nil, err
	}
	if err := v.writeBack(); err != nil {
		return nil, err
	}
	w.o.Socket = p.socket
	w.o.BackendPID = p.cmd.Process.Pid
	r, err = load.Run(ctx, w.o)
	switch {
	case err != nil:
		return nil, err
	case r.Errors > 0 || r.Interrupted || r.CPUBackend == nil:
		return nil, fmt.Errorf("%d errors, interrupted %t, CPU time %q: no result", r.Errors,
			r.Interrupted, r.BackendNote)
	}
	return r, nil
}
