package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowblk/backend/client"
	"cowblk/cow/store"
)

func newResume(a *app) *cobra.Command {
	forget := false
	cmd := &cobra.Command{
		Use:   "resume NAME...",
		Short: "Continue guests that wait for space, at once",
		Long: `Continue guests that wait for space on a full file system or quota ("cowblk serve --on-enospc stop").
They continue automatically soon after space is free; this command is for free space that cannot be
detected, as on a thinly provisioned device. If there still is no space, they wait again.

A process that was killed during a promotion with --quiesce leaves a record of the guest, which may be
frozen or paused. The next process thaws that guest. If the guest is off or was restarted, the record is
removed automatically. If its state cannot be determined, --forget removes the record without touching
the guest: if the guest still runs, thaw or continue it (virsh domfsthaw, QEMU's cont).`,
		Example:           "  cowblk resume vm1\n  cowblk resume --forget vm1",
		Args:              distinctArgs(1, "NAME"),
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
				result, err := "goes on", error(nil)
				if forget {
					result, err = a.forget(cmd.Context(), st, name)
				} else {
					err = a.resume(cmd.Context(), st, name)
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("resume: %w", err))
					continue
				}
				a.printf("%s %s", name, result)
				done = append(done, resumed{name, result})
			}
			if a.json {
				errs = append(errs, a.printJSON(done))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&forget, "forget", false,
		"remove the record that the guest may be frozen or paused")
	return cmd
}

func (a *app) resume(ctx context.Context, st *store.Store, name string) error {
	path, err := client.ControlSocket(st, []string{name})
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("disk %q is stopped: nothing of it waits", name)
	}
	return runDiskCommand(ctx, st, path, name, "cow-resume")
}

// forget removes the record of a quiesced guest, through the daemon if one serves the disk.
func (a *app) forget(ctx context.Context, st *store.Store, name string) (result string, err error) {
	path, err := client.ControlSocket(st, []string{name})
	if err != nil {
		return "", err
	}
	// A record that cannot be read is removed as well.
	found, readErr := st.QuiesceRecord(name, &struct{}{})
	if !found && readErr == nil {
		return "has no record of a guest that holds still", nil
	}
	if path != "" {
		err = runDiskCommand(ctx, st, path, name, "cow-forget-guest")
	} else {
		err = st.DropQuiesceRecord(name)
	}
	return "no longer has a record of a guest that holds still", err
}

// runDiskCommand runs a control command about one disk in the process that serves it.
func runDiskCommand(ctx context.Context, st *store.Store, path, name, command string) error {
	c, err := client.Dial(ctx, st, path, []string{name})
	if errors.Is(err, store.ErrRefused) {
		return err
	}
	if err != nil {
		return fmt.Errorf("disk %q: the process that serves it does not answer: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, client.QueryTimeout)
	defer cancel()
	return c.Run(ctx, command, map[string]string{"disk": name}, nil)
}
