package main

import (
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
	"cowblk/backend/daemon"
	"cowblk/cow"
	"cowblk/cow/layer"
)

// dataFlags holds the options of "cowblk serve" and "cowblk run" for caching, flushing and polling.
type dataFlags struct {
	daemon.Options // Device and Cow are set by the flags and by check

	flushInterval                time.Duration // 0: no background flushes
	keepUnflushed, dropUnflushed bool
}

const forceShareHelp = "use a base in place although another process holds a lock on it: it must not change\nmeanwhile. Its fingerprint, size and time are still checked"

func (f *dataFlags) register(cmd *cobra.Command) {
	f.Device.Queues = backend.DefaultQueues
	fl := cmd.Flags()
	fl.TextVar(&f.Device.Cache, "cache", backend.Cache{},
		"`MODE` as QEMU's cache= has it: writeback; writethrough: every write is durable\nwhen it completes; none: past this machine's page cache; directsync: both")
	fl.BoolVar(&f.Device.WritebackWithoutFlush, "writeback-without-flush", false,
		"keep the write cache on for a driver that does not negotiate VIRTIO_BLK_F_FLUSH, such as\nSPDK's initiator; otherwise each of its writes is durable when it completes")
	fl.DurationVar(&f.flushInterval, "flush-interval", cow.DefaultFlushInterval,
		"flush a disk when a write has been unflushed for `TIME` (100ms to 24h; 0: never)")
	fl.DurationVar(&f.Device.Poll, "poll", backend.DefaultPoll,
		"an idle queue may poll for requests for at most `TIME` before it sleeps (0: never)")
	fl.BoolVar(&f.Cow.LoseUnflushed, "lose-unflushed", false,
		"if there is no directory in memory (tmpfs): lose unflushed writes of guests when this process\nis killed, instead of flushing each first write of a block")
	fl.BoolVar(&f.dropUnflushed, "drop-unflushed", false,
		"open a disk whose process was killed as after a power cut, without unflushed writes of\nits guest")
	fl.BoolVar(&f.keepUnflushed, "keep-unflushed", false,
		"open a disk whose process was killed with the unflushed writes of its guest, although the\nowner, mode or names of its files have changed")
	fl.BoolVar(&f.Cow.ForceShare, "force-share", false, forceShareHelp)
	_ = cmd.RegisterFlagCompletionFunc("cache", cobra.FixedCompletions(
		[]cobra.Completion{"writeback", "writethrough", "none", "directsync"},
		cobra.ShellCompDirectiveNoFileComp))
}

// check validates the options and completes Cow.
func (f *dataFlags) check(command string) error {
	cache := f.Device.Cache
	switch {
	case backend.CheckPoll(f.Device.Poll) != nil:
		return usagef("%s: --%w", command, backend.CheckPoll(f.Device.Poll))
	case f.keepUnflushed && f.dropUnflushed:
		return usagef("%s: --keep-unflushed and --drop-unflushed: expected one of them", command)
	case f.flushInterval < 0 || cow.CheckFlushInterval(f.flushInterval) != nil:
		return usagef("%s: --flush-interval %v: expected a time from %v to %v, or 0 for never",
			command, f.flushInterval, cow.MinFlushInterval, cow.MaxFlushInterval)
	case f.Device.WritebackWithoutFlush && cache.WriteThrough:
		return usagef("%s: --writeback-without-flush and --cache %s exclude each other: the first keeps the write cache on, the second has none", command, cache)
	case f.keepUnflushed:
		f.Cow.Unflushed = layer.KeepUnflushed
	case f.dropUnflushed:
		f.Cow.Unflushed = layer.DropUnflushed
	}
	f.Cow.Direct, f.Cow.FlushInterval = cache.Direct, f.flushInterval
	if f.flushInterval == 0 {
		f.Cow.FlushInterval = -1
	}
	return nil
}

// dataFlagNames returns the names of the options.
func dataFlagNames() []string {
	return []string{"cache", "writeback-without-flush", "flush-interval", "poll", "lose-unflushed",
		"drop-unflushed", "keep-unflushed", "force-share"}
}
