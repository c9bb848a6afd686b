package main

import (
	"time"

	"github.com/spf13/cobra"

	"cowblk/backend"
)

// dataFlags are the options of "cowblk serve" and "cowblk run" about how data moves.
type dataFlags struct {
	cache backend.Cache
	poll  time.Duration
}

func (f *dataFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.TextVar(&f.cache, "cache", backend.Cache{}, "`MODE` as QEMU's cache= has it: writeback; writethrough: every write is durable\nwhen it completes; none: past this machine's page cache; directsync: both")
	fl.DurationVar(&f.poll, "poll", backend.DefaultPoll, "an idle queue may look for requests so long before it sleeps (`TIME`; 0: never)")
	_ = cmd.RegisterFlagCompletionFunc("cache", cobra.FixedCompletions(
		[]cobra.Completion{"writeback", "writethrough", "none", "directsync"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *dataFlags) check(command string) error {
	if err := backend.CheckPoll(f.poll); err != nil {
		return usagef("%s: --%w", command, err)
	}
	return nil
}
