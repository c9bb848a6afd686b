package main

import (
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/cow"
	"cowblk/cow/layer"
)

// dataFlags holds the options of "cowblk serve" and "cowblk run" for caching, flushing and polling.
type dataFlags struct {
	cache         backend.Cache
	withoutFlush  bool          // see backend.DeviceOptions.WritebackWithoutFlush
	flushInterval time.Duration // 0: no background flushes
	poll          time.Duration

	forceShare bool // see cow.Options.ForceShare

	loseUnflushed, keepUnflushed, dropUnflushed bool
}

const forceShareHelp = "use a base in place although another process holds a lock on it: it must not change\nmeanwhile. Its fingerprint, size and time are still checked"

func (f *dataFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.TextVar(&f.cache, "cache", backend.Cache{}, "`MODE` as QEMU's cache= has it: writeback; writethrough: every write is durable\nwhen it completes; none: past this machine's page cache; directsync: both")
	fl.BoolVar(&f.withoutFlush, "writeback-without-flush", false, "keep the write cache on for a driver that does not negotiate VIRTIO_BLK_F_FLUSH, such as\nSPDK's initiator; otherwise each of its writes is durable when it completes")
	fl.DurationVar(&f.flushInterval, "flush-interval", cow.DefaultFlushInterval, "flush a disk when a write has been unflushed for `TIME` (100ms to 24h; 0: never)")
	fl.DurationVar(&f.poll, "poll", backend.DefaultPoll, "an idle queue may poll for requests for at most `TIME` before it sleeps (0: never)")
	fl.BoolVar(&f.loseUnflushed, "lose-unflushed", false, "if there is no directory in memory (tmpfs): lose unflushed writes of guests when this process\nis killed, instead of flushing each first write of a block")
	fl.BoolVar(&f.dropUnflushed, "drop-unflushed", false, "open a disk whose process was killed as after a power cut, without unflushed writes of\nits guest")
	fl.BoolVar(&f.keepUnflushed, "keep-unflushed", false, "open a disk whose process was killed with the unflushed writes of its guest, although the\nowner, mode or names of its files have changed")
	fl.BoolVar(&f.forceShare, "force-share", false, forceShareHelp)
	_ = cmd.RegisterFlagCompletionFunc("cache", cobra.FixedCompletions(
		[]cobra.Completion{"writeback", "writethrough", "none", "directsync"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *dataFlags) check(command string) error {
	if err := backend.CheckPoll(f.poll); err != nil {
		return usagef("%s: --%w", command, err)
	}
	if f.keepUnflushed && f.dropUnflushed {
		return usagef("%s: --keep-unflushed and --drop-unflushed: expected one of them", command)
	}
	if f.flushInterval < 0 || cow.CheckFlushInterval(f.flushInterval) != nil {
		return usagef("%s: --flush-interval %v: expected a time from %v to %v, or 0 for never", command, f.flushInterval, cow.MinFlushInterval, cow.MaxFlushInterval)
	}
	if f.withoutFlush && f.cache.WriteThrough {
		return usagef("%s: --writeback-without-flush and --cache %s exclude each other: the first keeps the write cache on, the second has none", command, f.cache)
	}
	return nil
}

// unflushed returns what opening does with the unflushed writes of a killed process.
func (f *dataFlags) unflushed() layer.Unflushed {
	switch {
	case f.keepUnflushed:
		return layer.KeepUnflushed
	case f.dropUnflushed:
		return layer.DropUnflushed
	}
	return layer.RecoverUnflushed
}

// dataFlagNames returns the names of the options.
func dataFlagNames() []string {
	return []string{"cache", "writeback-without-flush", "flush-interval", "poll", "lose-unflushed", "drop-unflushed", "keep-unflushed", "force-share"}
}

// device returns the options of the disk's device.
func (f *dataFlags) device() backend.DeviceOptions {
	return backend.DeviceOptions{Queues: backend.DefaultQueues, Cache: f.cache, WritebackWithoutFlush: f.withoutFlush, Poll: f.poll}
}

// cowOptions returns the options of cow.Open.
func (f *dataFlags) cowOptions(log *slog.Logger) cow.Options {
	o := cow.Options{Log: log, Direct: f.cache.Direct, FlushInterval: f.flushInterval, LoseUnflushed: f.loseUnflushed, Unflushed: f.unflushed(), ForceShare: f.forceShare}
	if f.flushInterval == 0 {
		o.FlushInterval = -1
	}
	return o
}
