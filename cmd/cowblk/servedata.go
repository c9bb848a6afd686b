package main

import (
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/cow"
)

// dataFlags are the options of "cowblk serve" and "cowblk run" about how data moves.
type dataFlags struct {
	cache         backend.Cache
	withoutFlush  bool          // see backend.DeviceOptions.WritebackWithoutFlush
	flushInterval time.Duration // 0: no background flushes
	poll          time.Duration
}

func (f *dataFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.TextVar(&f.cache, "cache", backend.Cache{}, "`MODE` as QEMU's cache= has it: writeback; writethrough: every write is durable\nwhen it completes; none: past this machine's page cache; directsync: both")
	fl.BoolVar(&f.withoutFlush, "writeback-without-flush", false, "keep the write cache on for a driver that does not negotiate VIRTIO_BLK_F_FLUSH, such as\nSPDK's initiator; otherwise each of its writes is durable when it completes")
	fl.DurationVar(&f.flushInterval, "flush-interval", cow.DefaultFlushInterval, "flush a disk by itself when a write has waited for a flush for so long (`TIME`, 100ms to 24h; 0: never)")
	fl.DurationVar(&f.poll, "poll", backend.DefaultPoll, "an idle queue may look for requests so long before it sleeps (`TIME`; 0: never)")
	_ = cmd.RegisterFlagCompletionFunc("cache", cobra.FixedCompletions(
		[]cobra.Completion{"writeback", "writethrough", "none", "directsync"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *dataFlags) check(command string) error {
	if err := backend.CheckPoll(f.poll); err != nil {
		return usagef("%s: --%w", command, err)
	}
	if f.flushInterval < 0 || cow.CheckFlushInterval(f.flushInterval) != nil {
		return usagef("%s: --flush-interval %v: expected a time from %v to %v, or 0 for never", command, f.flushInterval, cow.MinFlushInterval, cow.MaxFlushInterval)
	}
	if f.withoutFlush && f.cache.WriteThrough {
		return usagef("%s: --writeback-without-flush and --cache %s exclude each other: the one keeps the write cache on, the other has none", command, f.cache)
	}
	return nil
}

// dataFlagNames are the names of the options.
func dataFlagNames() []string {
	return []string{"cache", "writeback-without-flush", "flush-interval", "poll"}
}

// open returns what cow.Open is told.
func (f *dataFlags) open(log *slog.Logger) cow.Options {
	o := cow.Options{Log: log, Direct: f.cache.Direct, FlushInterval: f.flushInterval}
	if f.flushInterval == 0 {
		o.FlushInterval = -1
	}
	return o
}
