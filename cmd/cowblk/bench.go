package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend/control"
	"cowblk/vhost/load"
)

const benchLong = `Load a vhost-user-blk back-end as a guest's driver would, and measure its speed. Any back-end's
socket works, not only cowblk's; QEMU must not be connected at the same time. Several sockets are
loaded concurrently.

Reads change nothing. Patterns that write OVERWRITE the disk, at random or from the start, with
random data: use a disk without valuable data, such as a new one (cowblk create) on the image in
question. On a terminal the command asks first, unless --yes is given.

Requests and latencies are those of reads and writes; with --fsync, flushes have their own line.
CPU times are per request, of the driver's threads and of the back-end's whole process. --no-poll
sleeps between requests as a guest does, which includes notifications and the scheduler in the
measurement; with polling, each side needs its own processor. Ctrl-C ends the run early with a
report.

--null has no disk: it measures the load generator itself on this machine.`

// benchFlags holds the command line of "cowblk bench".
type benchFlags struct {
	o            load.Options
	bs           sizeFlag
	size, offset sizeFlag
	poll, noPoll bool
	wce          string
	null, yes    bool
}

func newBench(a *app) *cobra.Command {
	f := &benchFlags{bs: 4096, poll: true}
	cmd := &cobra.Command{
		Use:   "bench SOCKET...",
		Short: "Measure a back-end: requests, latencies, CPU time",
		Long:  benchLong,
		Example: `  cowblk bench /run/cowblk/vm1.sock --qd 32
  cowblk bench /run/cowblk/scratch.sock --rw randwrite --fsync 1 --time 30s
  cowblk bench /run/cowblk/scratch.sock --first-write --size 4G --json
  cowblk bench --null --qd 32`,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.null {
				return maxArgs(0)(cmd, args)
			}
			return minArgs(1, "SOCKET")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.bench(cmd, args, f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.o.RW, "rw", load.RandRead, "`PATTERN`: "+strings.Join(load.Patterns(), ", "))
	fl.IntVar(&f.o.ReadPercent, "rwmixread", 0, "percentage of reads in randrw (default 50)")
	fl.Var(&f.bs, "bs", "bytes of a request")
	fl.IntVar(&f.o.QueueDepth, "qd", 1, "requests in flight on each queue")
	fl.IntVar(&f.o.Queues, "queues", 1, "queues, each with a thread of its own")
	fl.DurationVar(&f.o.Duration, "time", 5*time.Second, "how long to measure")
	fl.DurationVar(&f.o.Warmup, "warmup", time.Second,
		"load before measuring; none with --first-write")
	fl.BoolVar(&f.poll, "poll", true, "poll for completions")
	fl.BoolVar(&f.noPoll, "no-poll", false, "sleep until the back-end notifies")
	fl.IntVar(&f.o.FsyncEvery, "fsync", 0,
		"flush after every `N` writes of each of the requests in flight")
	fl.StringVar(&f.wce, "wce", "", "switch the write cache `on|off` first (default: leave it)")
	fl.Var(&f.size, "size", "bytes of the disk to use (default: all)")
	fl.Var(&f.offset, "offset", "offset of the used part of the disk, in bytes")
	fl.BoolVar(&f.o.FirstWrite, "first-write", false,
		"write each block once, in random order, until all are written\nor --time, if given, is over")
	fl.Uint64Var(&f.o.Seed, "seed", 0, "seed of the random numbers")
	fl.BoolVar(&f.o.Hugepages, "hugepages", false,
		"buffers in huge pages of 2 MiB (SPDK needs them)")
	fl.BoolVar(&f.null, "null", false,
		"instead of SOCKET: a back-end in this process without a disk")
	fl.BoolVarP(&f.yes, "yes", "y", false,
		"do not ask before overwriting; needed without a terminal")
	_ = cmd.RegisterFlagCompletionFunc("rw", cobra.FixedCompletions(load.Patterns(),
		cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("wce", cobra.FixedCompletions([]string{"on", "off"},
		cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// options converts the flags into load options, one set for each socket.
func (f *benchFlags) options(cmd *cobra.Command, sockets []string) ([]load.Options, error) {
	o := f.o
	changed := cmd.Flags().Changed
	if o.FirstWrite {
		if !changed("rw") {
			o.RW = load.RandWrite
		}
		if !changed("time") {
			o.Duration = 0
		}
		if !changed("warmup") {
			o.Warmup = 0
		}
	}
	switch {
	case changed("poll") && changed("no-poll"):
		return nil, usagef("only one of --poll and --no-poll can be given")
	case !slices.Contains(load.Patterns(), o.RW):
		return nil, usagef("pattern %q, expected one of %s", o.RW, strings.Join(load.Patterns(),
			", "))
	case changed("time") && o.Duration <= 0:
		return nil, usagef("--time must be more than 0")
	case changed("qd") && o.QueueDepth == 0, changed("queues") && o.Queues == 0, f.bs == 0:
		return nil, usagef("--qd, --queues and --bs must be more than 0")
	case changed("size") && f.size == 0:
		return nil, usagef("--size must be more than 0")
	}
	switch f.wce {
	case "":
	case "on", "off":
		on := f.wce == "on"
		o.WCE = &on
	default:
		return nil, usagef("--wce is %q, expected on or off", f.wce)
	}
	o.BlockSize, o.Size, o.Offset = int(f.bs), int64(f.size), int64(f.offset)
	o.Poll = f.poll && !f.noPoll
	if o.Null = f.null; f.null {
		return []load.Options{o}, nil
	}
	var all []load.Options
	for _, s := range sockets {
		o.Socket = s
		all = append(all, o)
	}
	return all, nil
}

func (a *app) bench(cmd *cobra.Command, sockets []string, f *benchFlags) error {
	loads, err := f.options(cmd, sockets)
	if err != nil {
		return err
	}
	if len(slices.Compact(slices.Sorted(slices.Values(sockets)))) != len(sockets) {
		return usagef("a socket is named twice; a back-end takes one connection")
	}
	for _, path := range sockets {
		if err := control.CheckPath(path); err != nil {
			return usagef("bench: %w", err)
		}
	}
	if loads[0].Writes() && !f.null && !f.yes {
		if err := a.confirm(cmd.Context(), fmt.Sprintf("Overwrite data on the disk behind %s (%s)?",
			strings.Join(sockets, ", "), loads[0].RW)); err != nil {
			return notConfirmed(err)
		}
	}
	reports, sum, err := load.RunAll(cmd.Context(), loads)
	if err != nil {
		if errors.Is(err, load.ErrOptions) {
			return usageError{err}
		}
		return err
	}
	if a.json {
		return a.printJSON(benchOutput{Sockets: reports, Sum: sum})
	}
	return a.printBench(reports, sum)
}

// benchOutput is the JSON output.
type benchOutput struct {
	Sockets []*load.Report `json:"sockets"`
	Sum     *load.Report   `json:"sum"`
}
