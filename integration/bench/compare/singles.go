package compare

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
	"cowblk/vhost/frontend"
	"cowblk/vhost/load"
)

// singles measures the figures that are not rates. It omits a figure that cannot be measured and
// records the reason.
func (s *site) singles(ctx context.Context) error {
	s.coldFigures()
	for _, m := range []struct {
		keys    []string
		quick   bool
		measure func(ctx context.Context) error
	}{
		{[]string{report.IdleCPU}, true, s.idle},
		{[]string{report.StormCowblk, report.StormQcow2}, false, s.bootStorm},
		{[]string{report.IndexClone}, true, s.freshClone},
		{[]string{report.IndexFiles, report.OpenFileTime}, true, func(ctx context.Context) error {
			return s.openLarge(ctx, "files", largeFiles, report.IndexFiles, report.OpenFileTime,
				"5 % of each in runs of 64 MiB")
		}},
		{[]string{report.IndexWorst, report.OpenTime}, false, func(ctx context.Context) error {
			return s.openLarge(ctx, "scattered", scattered, report.IndexWorst, report.OpenTime,
				"5 % of each, block by block")
		}},
	} {
		if s.quick && !m.quick || !slices.ContainsFunc(m.keys, s.only.MatchString) {
			continue
		}
		say("%s", m.keys[0])
		err := m.measure(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			say("%s: left out: %v", m.keys[0], err)
			for _, k := range m.keys {
				s.results.Missing[k] = firstLine(err)
			}
		}
	}
	return nil
}

// idle measures the CPU time of a daemon whose disks are connected and have been used, but have no
// requests.
func (s *site) idle(ctx context.Context) error {
	const disks = 100
	args := []string{"serve"}
	for i := range disks {
		name := fmt.Sprintf("i%d", i)
		if err := s.clone(ctx, name, 1); err != nil {
			return err
		}
		args = append(args, name)
	}
	// Sockets appear in the order of the disks.
	started, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b, err := harness.StartBackend(started, s.store().Cmd(args...),
		s.diskSocket(fmt.Sprintf("i%d", disks-1)))
	if err != nil {
		return err
	}
	defer b.Kill()
	for i := range disks {
		f, err := frontend.Dial(s.diskSocket(fmt.Sprintf("i%d", i)), frontend.Options{
			Memory: 2 * mib, Timeout: patience})
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Driver(0).ReadAt(make([]byte, blockSize), int64(i)*blockSize); err != nil {
			return err
		}
	}
	period := max(2*s.time, time.Second)
	if err := sleep(ctx, period); err != nil {
		return err
	}
	before, err := cpuTime(b.PID())
	if err != nil {
		return err
	}
	start := time.Now()
	if err := sleep(ctx, 2*period); err != nil {
		return err
	}
	after, err := cpuTime(b.PID())
	if err != nil {
		return err
	}
	took := time.Since(start)
	s.results.AddSingle(report.IdleCPU,
		fmt.Sprintf("CPU of a daemon with %d connected idle disks, over %s", disks,
			took.Round(time.Second)),
		float64(after-before)/float64(took)*100, "%")
	return nil
}

// diskSocket returns the socket of a disk that is served without --socket-path.
func (s *site) diskSocket(disk string) string { return s.path("store/run/" + disk + ".sock") }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cpuTime returns the CPU time of all threads of a process, also of ended ones.
func cpuTime(pid int) (time.Duration, error) {
	// include/linux/posix-timers.h: CPUCLOCK_SCHED of a process.
	const schedClock = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &t); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// freshClone measures the index memory of a new disk on a large image.
func (s *site) freshClone(ctx context.Context) error {
	image := s.path("fifty.img")
	if err := makeSparse(image, 50<<30); err != nil {
		return err
	}
	if _, err := s.store().Run(ctx, "create", "fifty", "--base", image); err != nil {
		return err
	}
	b, err := s.start(ctx, s.serve("fifty"))
	if err != nil {
		return err
	}
	defer b.Kill()
	if _, err := drive(ctx, b.Socket, load.Options{RW: load.RandRead, QueueDepth: 32,
		Duration: s.time / 4}); err != nil {
		return err
	}
	client, err := s.control("fifty")
	if err != nil {
		return err
	}
	var disks []struct {
		Index int64 `json:"index-bytes"`
	}
	if err := client.Run(ctx, "query-cow-disks", nil, &disks); err != nil {
		return err
	}
	if len(disks) != 1 {
		return fmt.Errorf("query-cow-disks reported %d disks, expected 1", len(disks))
	}
	s.results.AddSingle(report.IndexClone, "index of a fresh clone of a 50 GB image, after reads",
		float64(disks[0].Index), "bytes")
	return nil
}
