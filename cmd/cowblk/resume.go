package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowblk/backend/control"
	"cowblk/cow/store"
)

func newResume(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME...",
		Short: "Let guests go on that wait for space, at once",
		Long: `Let guests go on that wait for space on a full file system or quota ("cowblk serve --on-enospc pause").
They do so by themselves, a moment after there is space again; this is for when that cannot be seen, as
with a device that is thinly provisioned. If there still is none, they wait again.`,
		Example:           "  cowblk resume vm1",
		Args:              atLeast(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			st, err := a.openStore()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				if err := a.resume(cmd.Context(), st, name); err != nil {
					errs = append(errs, fmt.Errorf("resume: %w", err))
					continue
				}
				a.say("%s goes on", name)
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) resume(ctx context.Context, st *store.Store, name string) error {
	path, err := servedBy(st, []string{name})
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("disk %q is stopped: nothing of it waits", name)
	}
	c, err := control.Dial(path, askLimit)
	if err != nil {
		return fmt.Errorf("disk %q: the process that serves it does not answer: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return c.Run(ctx, "cow-resume", map[string]string{"disk": name}, nil)
}
