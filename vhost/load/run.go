package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cowblk/vhost/frontend"
)

// stopTimeout bounds how long queues may take to end after an interruption.
const stopTimeout = time.Second

// Run loads one back-end; see RunAll.
func Run(ctx context.Context, o Options) (*Report, error) {
	reports, _, err := RunAll(ctx, []Options{o})
	if len(reports) == 0 {
		return nil, err
	}
	return reports[0], err
}

// RunAll loads several back-ends at the same time, and returns a report for each and the sum of
// all.
//
// When ctx ends, the load ends early without an error, and the reports say Interrupted. Errors wrap
// ErrOptions for an invalid load, ErrTarget for a load that this back-end does not support, or
// vhost/frontend's errors for a back-end that fails; there are no reports then.
//
// Queues need threads that run concurrently with the rest of the program, so GOMAXPROCS is raised
// if it is too small.
func RunAll(ctx context.Context, loads []Options) (reports []*Report, sum *Report, err error) {
	var stop atomic.Bool
	targets := make([]*target, 0, len(loads))
	defer func() {
		for _, t := range targets {
			if err != nil {
				t.abort()
			} else if cerr := t.close(); cerr != nil {
				reports, sum, err = nil, nil, t.describeError(cerr)
			}
		}
	}()
	if len(loads) == 0 {
		return nil, nil, badOptions("no back-end to load")
	}
	loads = slices.Clone(loads)
	for i, o := range loads {
		if loads[i], err = o.withDefaults(); err != nil {
			return nil, nil, err
		}
	}
	threads := 2
	for _, o := range loads {
		t, err := open(o, &stop)
		if err != nil {
			return nil, nil, err
		}
		targets = append(targets, t)
		if threads += o.Queues; o.Null {
			threads += o.Queues
		}
	}
	shareCPU(targets)
	if runtime.GOMAXPROCS(0) < threads {
		runtime.GOMAXPROCS(threads)
	}
	if err := drive(ctx, targets, &stop); err != nil {
		return nil, nil, err
	}
	reports, sum = reportAll(targets, ctx.Err() != nil)
	return reports, sum, nil
}

// shareCPU assigns the CPU time of a process to the first of its sockets.
func shareCPU(targets []*target) {
	seen := map[int]bool{}
	for _, t := range targets {
		if seen[t.pid] {
			t.queues[0].backend, t.process = nil, nil
		}
		seen[t.pid] = true
	}
}

// drive runs all queues, and stops all if one fails.
func drive(ctx context.Context, targets []*target, stop *atomic.Bool) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	var connections []*frontend.Frontend
	for _, t := range targets {
		connections = append(connections, t.f)
	}
	done := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		stop.Store(true)
		select {
		case <-done:
		case <-time.After(stopTimeout):
			for _, f := range connections {
				_ = f.Disconnect() // fails if it has just been closed
			}
		}
	})()
	origin := time.Now()
	for _, t := range targets {
		for _, q := range t.queues {
			wg.Go(func() {
				if err := q.run(origin); err != nil {
					stop.Store(true)
					mu.Lock()
					errs = append(errs, t.describeError(err))
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	close(done)
	err := errors.Join(errs...)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("ended early, and what was in flight did not come back within %v: %w",
			stopTimeout, err)
	}
	return err
}

// reportAll returns the reports and their sum.
func reportAll(targets []*target, interrupted bool) (reports []*Report, sum *Report) {
	var ours time.Duration // the drivers' CPU time
	for _, t := range targets {
		for _, q := range t.queues {
			ours += q.cpu
		}
	}
	for _, t := range targets {
		r := t.report()
		r.Interrupted = interrupted
		if t.process != nil && t.pid == os.Getpid() {
			r.backendTime = max(r.backendTime-ours, 0)
			r.BackendNote = "the back-end is in this process: what the driver's threads did not use"
		}
		reports = append(reports, r)
	}
	for _, r := range reports {
		r.finish()
	}
	return reports, sumReports(reports)
}
