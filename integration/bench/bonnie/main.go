package bonnie

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cowblk/integration/harness"
)

// settings are the settings of one benchmark.
type settings struct {
	dir            string
	rounds         int
	fileMiB        int // size of bonnie++'s file; the guest has half as much memory
	files          int // in units of 1,024 files that are made, looked up and removed
	limit          time.Duration
	json, markdown string

	golden harness.Golden
	tools  string // raw disk: a tar
	base   string // raw disk: the initial file system of every disk
	store  *harness.Store
}

// Main parses the command line and measures until ctx is done.
func Main(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bonnie", flag.ExitOnError)
	var s settings
	fs.StringVar(&s.dir, "dir", os.TempDir(),
		"`DIRECTORY` for disks, on the file system to measure")
	fs.IntVar(&s.rounds, "rounds", 3, "runs of each kind of disk")
	fs.IntVar(&s.fileMiB, "file", 512,
		"`MiB` of bonnie++'s file; the guest has half as much memory")
	fs.IntVar(&s.files, "files", 4, "bonnie++'s small files, in `THOUSANDS`")
	fs.DurationVar(&s.limit, "limit", time.Hour, "`TIME` after which to give up")
	fs.StringVar(&s.json, "json", "", "`FILE` for every run's numbers")
	fs.StringVar(&s.markdown, "markdown", "", "`FILE` for the tables, besides standard output")
	_ = fs.Parse(args) // exits on an error
	return run(ctx, &s)
}

func run(ctx context.Context, s *settings) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	if s.dir, err = os.MkdirTemp(s.dir, "bonnie"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	if err := s.prepare(ctx); err != nil {
		return err
	}
	r := newReport(s)
	for round := range s.rounds {
		for i := range contenders {
			// Rotate, so that each contender comes first in some round.
			c := contenders[(i+round)%len(contenders)]
			start := time.Now()
			v, err := s.measure(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.Name, err)
			}
			r.add(c, v)
			fmt.Fprintf(os.Stderr, "round %d, %s: %.0f s\n", round+1, c.Name,
				time.Since(start).Seconds())
		}
	}
	return r.write(s)
}

// diskMiB returns the size of the disks: space for bonnie++'s files and those of the layers.
func (s *settings) diskMiB() int { return s.fileMiB + 8*layerMiB + 512 }

// prepare makes the files that all runs share.
func (s *settings) prepare(ctx context.Context) (err error) {
	if s.golden, err = harness.NewGolden(ctx); err != nil {
		return err
	}
	tools, err := harness.Artefact(ctx, "bonnie")
	if err != nil {
		return err
	}
	s.tools = filepath.Join(tools, "tools.tar")
	if s.store, err = harness.NewStore(filepath.Join(s.dir, "store")); err != nil {
		return err
	}
	s.base = filepath.Join(s.dir, "base.raw")
	if err := sparse(s.base, s.diskMiB()); err != nil {
		return err
	}
	if err := command(ctx, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E",
		"lazy_itable_init=0,lazy_journal_init=0", s.base); err != nil {
		return err
	}
	_, err = s.store.Run(ctx, "import", s.base, "base")
	return err
}
