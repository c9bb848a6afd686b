package compare

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"cowblk/integration/bench/compare/report"
)

// removal removes a file.
func removal(path string) func() error { return func() error { return os.Remove(path) } }

// measureAll makes the files, starts the servers, and measures.
func (s *site) measureAll(ctx context.Context) error {
	say("making files and starting servers in %s", s.dir)
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if err := s.takeSamples(ctx); err != nil {
		return err
	}
	return s.singles(ctx)
}

// prepare makes everything that the first round needs.
func (s *site) prepare(ctx context.Context) error {
	if err := makeBase(ctx, s.base(), s.size); err != nil {
		return err
	}
	if err := s.makeStacks(ctx); err != nil {
		return err
	}
	if err := s.startServer(ctx, report.RawRead, s.passThrough(s.base(),
		"--read-only")); err != nil {
		return err
	}
	if err := s.servePlain(ctx, report.RawWrite, func(path string) func(string) *exec.Cmd {
		return s.passThrough(path)
	}); err != nil {
		return err
	}
	if err := s.makeOwned(ctx, ownedDisks()); err != nil {
		return err
	}
	if _, err := exec.LookPath(s.qsd); err != nil {
		say("without QEMU: %v", err)
		for _, c := range slices.Concat(readers(), writers(), ownedReaders()) {
			if strings.HasPrefix(c.key, "q") {
				s.results.Missing[c.key] = err.Error()
			}
		}
		for _, key := range []string{report.FreshQcow2, report.FreshRaw, report.StormQcow2} {
			s.results.Missing[key] = err.Error()
		}
		return nil
	}
	where := map[bool]string{true: "an I/O thread each, with its default polling",
		false: "the main loop"}[s.iothread]
	s.results.Notes = append(s.results.Notes,
		"qemu-storage-daemon: write cache on, aio=io_uring, exports in "+where+".")
	if err := s.startServer(ctx, report.QSDRead, s.export(rawNode(s.base()), false)); err != nil {
		return err
	}
	if err := s.servePlain(ctx, report.QSDWrite, func(path string) func(string) *exec.Cmd {
		return s.export(rawNode(path), true)
	}); err != nil {
		return err
	}
	if err := s.makeChains(ctx); err != nil {
		return err
	}
	return s.makeOwned(ctx, ownedOverlays())
}

// servePlain serves a plain file and fills it. Each server has a file of its own: both lock theirs.
func (s *site) servePlain(ctx context.Context, key string,
	serve func(path string) func(string) *exec.Cmd) error {
	path := s.path(key + ".img")
	if err := makeSparse(path, s.size); err != nil {
		return err
	}
	if err := s.startServer(ctx, key, serve(path)); err != nil {
		return err
	}
	if err := fill(ctx, s.servers[key].Socket, extent{0, s.area}); err != nil {
		return fmt.Errorf("%s: filling a plain file: %w", key, err)
	}
	return nil
}

// plan returns the tasks that the command line selects.
func (s *site) plan() []task {
	return slices.DeleteFunc(s.tasks(), func(t task) bool {
		return s.quick && !t.quick || !s.only.MatchString(t.workload) ||
			!s.contenders.MatchString(t.contender)
	})
}

// takeSamples takes all samples.
func (s *site) takeSamples(ctx context.Context) error {
	tasks := s.plan()
	for round := range s.settings.rounds {
		order := slices.Clone(tasks)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		renew := s.settings.renewed && round > 0
		if renew {
			say("round %d/%d: restarting servers", round+1, s.settings.rounds)
		}
		if renew || round == 0 {
			// Keep the order: of two equal servers the one that starts first is faster, by 8 to 13
			// % in random reads.
			if err := s.readyServers(ctx, order, renew); err != nil {
				return err
			}
		}
		for i, t := range order {
			if s.results.Missing[t.contender] != "" {
				continue
			}
			progress := fmt.Sprintf("round %d/%d, %d/%d: %s, %s", round+1, s.settings.rounds, i+1,
				len(order), t.workload, t.label)
			sample, err := t.measure(ctx, round)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				say("%s: left out: %v", progress, err)
				s.results.Missing[t.contender] = firstLine(err)
				continue
			}
			sample.Round = round
			s.results.Add(t.contender, t.label, t.workload, sample)
			say("%s: %.0f/s, p99 %.1f µs", progress, sample.IOPS, sample.Latency.P99/1e3)
		}
	}
	s.arrange(tasks)
	return nil
}

// arrange sorts the points into the order of the plan; a backward round may have created some in
// reverse.
func (s *site) arrange(tasks []task) {
	place := map[string]int{}
	for i, t := range tasks {
		place[t.contender+" "+t.workload] = i
	}
	slices.SortStableFunc(s.results.Points, func(a, b *report.Point) int {
		return place[a.Contender+" "+a.Workload] - place[b.Contender+" "+b.Workload]
	})
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
