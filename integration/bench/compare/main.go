package compare

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"time"

	"cowblk/integration/bench/compare/report"
)

// settings holds the command line's options.
type settings struct {
	cowblk, qsd, fio string
	dir, out         string
	size, area       int64
	time             time.Duration
	rounds           int
	quick            bool
	busy             bool
	iothread         bool
	renewed          bool
	only, contenders *regexp.Regexp
}

// Main parses the command line and measures until ctx is done.
func Main(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("compare", flag.ExitOnError)
	s := settings{}
	fs.StringVar(&s.cowblk, "cowblk", os.Getenv("COWBLK_BINARY"),
		"the cowblk `BINARY` (default $COWBLK_BINARY, else ./cowblk)")
	fs.StringVar(&s.qsd, "qemu-storage-daemon", "qemu-storage-daemon", "`BINARY` to compare with")
	fs.StringVar(&s.fio, "fio", "fio", "fio's `BINARY`")
	fs.StringVar(&s.dir, "dir", os.TempDir(),
		"`DIRECTORY` for all files, on the file system to measure: 15 GiB free")
	fs.StringVar(&s.out, "out", "bench/results",
		"`DIRECTORY` for results.json, results.md and the plots")
	// Two instances of one server differ more than two seconds of one: prefer many short rounds.
	fs.DurationVar(&s.time, "time", 500*time.Millisecond, "length of one sample")
	fs.IntVar(&s.rounds, "rounds", 13, "samples of each contender under each workload")
	fs.Int64Var(&s.size, "size", 1<<30, "bytes of the base image")
	fs.Int64Var(&s.area, "area", 512<<20, "bytes that overwrites use")
	fs.BoolVar(&s.quick, "quick", false, "the most important rows only, in about three minutes")
	fs.BoolVar(&s.busy, "busy", false,
		"measure also on a busy machine, and say so in the results: for trying out, not for figures")
	fs.BoolVar(&s.iothread, "iothread", true,
		"exports of qemu-storage-daemon run in an I/O thread, which polls, instead of the main loop")
	fs.BoolVar(&s.renewed, "renew", true,
		"restart the servers for each round (with --quick: only if given)")
	only := fs.String("only", "", "only workloads and figures whose key matches the `REGEXP`")
	contenders := fs.String("contenders", "", "only contenders whose key matches the `REGEXP`")
	_ = fs.Parse(args) // exits on an error
	if s.quick {
		shorten(fs, &s)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("argument %q: expected options only", fs.Arg(0))
	}
	var err error
	if s.only, err = regexp.Compile(*only); err != nil {
		return err
	}
	if s.contenders, err = regexp.Compile(*contenders); err != nil {
		return err
	}
	return run(ctx, &s)
}

// shorten shortens the options that the command line leaves at their defaults.
func shorten(fs *flag.FlagSet, s *settings) {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if !given["renew"] {
		s.renewed = false
	}
	if !given["time"] {
		s.time = 700 * time.Millisecond
	}
	if !given["rounds"] {
		s.rounds = 3
	}
	if !given["size"] {
		s.size = 512 << 20
	}
	if !given["area"] {
		s.area = 128 << 20
	}
}

func (s *settings) check() error {
	switch {
	case s.rounds < 1 || s.time < 10*time.Millisecond:
		return fmt.Errorf("%d rounds of %s: expected 1 or more of 10 ms or more", s.rounds, s.time)
	case s.size < 128<<20 || s.size%(1<<20) != 0:
		return fmt.Errorf("--size %d: expected whole MiB, 128 or more", s.size)
	case s.area <= 0 || s.area > s.size || s.area%(1<<20) != 0:
		return fmt.Errorf("--area %d: expected whole MiB, up to the size %d", s.area, s.size)
	}
	if s.cowblk == "" {
		s.cowblk = "cowblk"
	}
	b, err := filepath.Abs(s.cowblk)
	if err != nil {
		return err
	}
	if _, err := os.Stat(b); err != nil {
		return fmt.Errorf("%w: run \"make build\" first, or give --cowblk", err)
	}
	s.cowblk = b
	s.dir, err = filepath.Abs(s.dir)
	return err
}

// errBusy reports that the machine does other work.
var errBusy = errors.New("the machine is busy")

// checkLoad refuses a busy machine, unless the command line allows it.
func (s *settings) checkLoad(m report.Machine) error {
	if s.busy || m.Busy() == "" {
		return nil
	}
	return fmt.Errorf("%w: load average %s, expected less than %.1f in the last minute: wait a minute (building counts, too), or give --busy for figures that mean nothing",
		errBusy, m.LoadBefore, report.BusyLoad)
}

func run(ctx context.Context, s *settings) (err error) {
	if err := s.check(); err != nil {
		return err
	}
	machine := report.Describe(s.dir, s.qsd, s.fio)
	if err := s.checkLoad(machine); err != nil {
		return err
	}
	// Garbage collections would show in the latencies.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(2 << 30)

	dir, err := os.MkdirTemp(s.dir, "cowcompare")
	if err != nil {
		return err
	}
	st := &site{settings: s, dir: dir, results: &report.Results{
		Machine:  machine,
		Settings: report.Settings{Size: s.size, Area: s.area, Time: s.time, Rounds: s.rounds},
		Missing:  map[string]string{},
	}}
	defer func() { err = errors.Join(err, st.close()) }()
	if warning := machine.Busy(); warning != "" {
		st.results.Notes = append(st.results.Notes, warning)
		say("%s", warning)
	}
	start := time.Now()
	if err := st.measureAll(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted: nothing was written")
		}
		return err
	}
	r := st.results
	r.Machine.LoadAfter = report.Load()
	r.Judge()
	fmt.Print(r.Text())
	if err := r.Write(s.out); err != nil {
		return err
	}
	say("%s; written to %s", time.Since(start).Round(time.Second), s.out)
	return nil
}

// say prints the progress of the run.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
