package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	gib       = int64(1) << 30
	tib       = int64(1) << 40
	blockSize = 4096 // bytes
)

// settings are the command line.
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

// parts are the values of --parts, in the order in which they are done.
var parts = map[string]func(context.Context, *settings) error{
	"empty": measureEmpty, "reopen": measureReopen, "takeover": measureTakeover, "writes": measureWrites,
}

func main() {
	var s settings
	before := flag.String("before", "", "the cowblk `BINARY` to compare with")
	after := flag.String("after", "cowblk", "the cowblk `BINARY` in question")
	flag.StringVar(&s.dir, "dir", os.TempDir(), "`DIRECTORY` for disks, on the file system to measure")
	flag.IntVar(&s.reopens, "reopens", 5, "reopen: how often each disk is killed and opened again")
	flag.IntVar(&s.rounds, "rounds", 9, "takeover, writes: samples of each build")
	flag.IntVar(&s.blocks, "blocks", 2_000_000, "reopen: how many unflushed blocks are many")
	flag.StringVar(&s.only, "only", "", "reopen: only the rows whose name contains `TEXT`")
	flag.Int64Var(&s.image, "image", 60*gib, "reopen, empty: `BYTES` of the sparse file for the XFS")
	which := flag.String("parts", "empty,reopen,takeover,writes", "what to measure, a `LIST` separated by commas")
	flag.Parse()
	s.parts = strings.Split(*which, ",")
	s.builds = []*build{{name: "before", binary: *before}, {name: "after", binary: *after}}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &s); err != nil {
		fmt.Fprintln(os.Stderr, "reopen:", err)
		os.Exit(1)
	}
}

// ownMounts says that this process has a mount namespace of its own.
const ownMounts = "COWBLK_BENCH_OWN_MOUNTS"

// unshare executes this program again in a mount namespace of its own: nobody copies its
// mounts, which would keep a device busy, and none of them outlives it.
func unshare() error {
	tool, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append([]string{tool, "--mount", "--", self}, os.Args[1:]...)
	return fmt.Errorf("%s: %w", tool, syscall.Exec(tool, args, append(os.Environ(), ownMounts+"=1")))
}

func run(ctx context.Context, s *settings) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("expected to run as root, found user %d: file systems are mounted", os.Geteuid())
	}
	if os.Getenv(ownMounts) == "" {
		return unshare()
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

// inTurn calls f for both builds, in another order in each round.
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
