package compare

import (
	"context"
	"errors"
	"fmt"

	"cowblk/integration/bench/compare/report"
	"cowblk/vhost/load"
)

// coldReads returns tasks that bypass the page cache: cowblk's and fio's on the same file.
func (s *site) coldReads() []task {
	o := load.Options{RW: load.RandRead, QueueDepth: 32, Size: s.size}
	ours := s.served(contender{report.StackDirect, "cowblk, depth 8, --cache none", false},
		report.ColdQD32, o)
	run := ours.measure
	ours.measure = func(ctx context.Context, round int) (report.Sample, error) {
		if s.servers[report.StackDirect] == nil {
			if err := s.serveDirect(ctx); err != nil {
				return report.Sample{}, err
			}
		}
		return run(ctx, round)
	}
	ours.quick = true
	return []task{ours, {report.FioDirect, "fio io_uring, O_DIRECT", report.ColdQD32, true,
		func(ctx context.Context, _ int) (report.Sample, error) {
			return s.runFio(ctx, s.base(), "io_uring", 32, true)
		}}}
}

// serveDirect serves a clone, because the disks that are already served are locked.
func (s *site) serveDirect(ctx context.Context) error {
	const disk = "direct"
	if err := s.clone(ctx, disk, 8); err != nil {
		return err
	}
	if err := s.startServer(ctx, report.StackDirect, s.serve(disk, "--cache", "none")); err != nil {
		if ctx.Err() == nil && s.store().Cmd("serve", "--cache", "none",
			"--print-capabilities").Run() != nil {
			return errors.New("not available: serve refuses --cache none")
		}
		return fmt.Errorf("serving without the page cache: %w", err)
	}
	return nil
}
