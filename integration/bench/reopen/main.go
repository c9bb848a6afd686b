package reopen

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cowblk/integration/bench/mountns"
)

const (
	gib       = int64(1) << 30
	tib       = int64(1) << 40
	blockSize = 4096 // bytes
)

// settings holds the command line's options.
type settings struct {
	builds  []*build // before, after
	dir     string
	reopens int
	rounds  int
	blocks  int
	parts   []string
	only    string
	image   int64
}

// parts are the values of --parts.
var parts = map[string]func(context.Context, *settings) error{
	"empty": measureEmpty, "reopen": measureReopen, "takeover": measureTakeover,
	"writes": measureWrites,
}

// Main parses the command line and measures until ctx is done.
func Main(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("reopen", flag.ExitOnError)
	var s settings
	before := fs.String("before", "", "the cowblk `BINARY` to compare with")
	after := fs.String("after", "cowblk", "the cowblk `BINARY` in question")
	fs.StringVar(&s.dir, "dir", os.TempDir(),
		"`DIRECTORY` for disks, on the file system to measure")
	fs.IntVar(&s.reopens, "reopens", 5, "reopen: how often each disk is killed and opened again")
	fs.IntVar(&s.rounds, "rounds", 9, "takeover, writes: samples of each build")
	fs.IntVar(&s.blocks, "blocks", 2_000_000,
		"reopen: number of unflushed blocks in the rows with many")
	fs.StringVar(&s.only, "only", "", "reopen: only the rows whose name contains `TEXT`")
	fs.Int64Var(&s.image, "image", 60*gib, "reopen, empty: `BYTES` of the sparse file for the XFS")
	which := fs.String("parts", "empty,reopen,takeover,writes",
		"what to measure, a `LIST` separated by commas")
	_ = fs.Parse(args) // exits on an error
	s.parts = strings.Split(*which, ",")
	s.builds = []*build{{name: "before", binary: *before}, {name: "after", binary: *after}}
	return run(ctx, &s)
}

func run(ctx context.Context, s *settings) (err error) {
	if err := mountns.Enter(); err != nil {
		return err
	}
	for _, b := range s.builds {
		if b.binary == "" {
			return fmt.Errorf("--%s is missing: the cowblk binary to measure", b.name)
		}
		if b.binary, err = filepath.Abs(b.binary); err != nil {
			return err
		}
		if err := b.inspect(ctx); err != nil {
			return err
		}
	}
	for _, p := range s.parts {
		measure := parts[p]
		if measure == nil {
			return fmt.Errorf("part %q: expected one of empty, reopen, takeover, writes", p)
		}
		if err := measure(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// inTurn calls f for both builds, in alternating order.
func (s *settings) inTurn(round int, f func(i int, b *build) error) error {
	order := []int{0, 1}
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, i := range order {
		if err := f(i, s.builds[i]); err != nil {
			return fmt.Errorf("%s: %w", s.builds[i].name, err)
		}
	}
	return nil
}
