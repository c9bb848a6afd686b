package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newResume(a *app) *cobra.Command {
	forget := false
	cmd := &cobra.Command{
		Use:   "resume NAME...",
		Short: "Let guests go on that wait for space, at once",
		Long: `Let guests go on that wait for space on a full file system or quota ("cowblk serve --on-enospc pause").
They do so by themselves, a moment after there is space again; this is for when that cannot be seen, as
with a device that is thinly provisioned. If there still is none, they wait again.

A process that was killed while it promoted a disk with --quiesce leaves a record of the guest that may
be frozen or paused, and the next one lets that guest go on. A guest that is off or was restarted since
needs nothing, and its record goes by itself. Where nobody can tell, --forget gives the record up, and
does nothing to the guest: if it still runs, thaw or continue it (virsh domfsthaw, QEMU's cont).`,
		Example:           "  cowblk resume vm1\n  cowblk resume --forget vm1",
		Args:              distinct("NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := a.openTrusted()
			if err != nil {
				return err
			}
			type resumed struct {
				Name   string `json:"name"`
				Result string `json:"result"`
			}
			var errs []error
			done := []resumed{}
			for i, name := range args {
				if cmd.Context().Err() != nil {
					return interruptedf("done with %d of %d disks", i, len(args))
				}
				said, err := "goes on", error(nil)
				if forget {
					said, err = a.forget(cmd.Context(), st, name)
				} else {
					err = a.resume(cmd.Context(), st, name)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("resume: %w", err))
					continue
				}
				a.say("%s %s", name, said)
				done = append(done, resumed{name, said})
			}
			if a.json {
				errs = append(errs, a.printJSON(done))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&forget, "forget", false, "give up the record that the guest may be frozen or paused")
	return cmd
}

func (a *app) resume(ctx context.Context, st *store.Store, name string) error {
	path, err := servedBy(st, []string{name})
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("disk %q is stopped: nothing of it waits", name)
	}
	return askControl(ctx, st, path, name, "cow-resume")
}

// forget takes back what is noted of a disk's guest, through the process that serves the disk if one does.
func (a *app) forget(ctx context.Context, st *store.Store, name string) (said string, err error) {
	path, err := servedBy(st, []string{name})
	if err != nil {
		return "", err
	}
	// One that cannot be read is a record, too.
	found, readErr := st.Note(name, &struct{}{})
	if !found && readErr == nil {
		return "has no record of a guest that holds still", nil
	}
	if path != "" {
		err = askControl(ctx, st, path, name, "cow-forget-guest")
	} else {
		err = st.ForgetNote(name)
	}
	return "no longer has a record of a guest that holds still", err
}

// askControl runs a command about one disk in the process that serves it.
func askControl(ctx context.Context, st *store.Store, path, name, command string) error {
	c, err := reach(ctx, st, path, []string{name})
	if errors.Is(err, store.ErrRefused) {
		return err
	}
	if err != nil {
		return fmt.Errorf("disk %q: the process that serves it does not answer: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return c.Run(ctx, command, map[string]string{"disk": name}, nil)
}
