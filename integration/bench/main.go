package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"cowblk/integration/bench/bonnie"
	"cowblk/integration/bench/compare"
	"cowblk/integration/bench/promote"
	"cowblk/integration/bench/reopen"
	"cowblk/integration/bench/scale"
)

var benchmarks = map[string]func(ctx context.Context, args []string) error{
	"compare": compare.Main, "promote": promote.Main, "reopen": reopen.Main, "scale": scale.Main,
	"bonnie": bonnie.Main,
}

// The kernel kills a child when the thread that created it ends (see package harness). This
// goroutine creates all children, so it keeps the main thread.
func init() { runtime.LockOSThread() }

func main() {
	var measure func(context.Context, []string) error
	if len(os.Args) > 1 {
		measure = benchmarks[os.Args[1]]
	}
	if measure == nil {
		fmt.Fprintf(os.Stderr, "usage: bench %s [OPTION...]\n",
			strings.Join(slices.Sorted(maps.Keys(benchmarks)), "|"))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM,
		syscall.SIGHUP)
	defer stop()
	if err := measure(ctx, os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
