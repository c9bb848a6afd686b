package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newRemove(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove disks and images",
		Long: `Remove disks and images. Layers that other disks use stay; files and devices named by
--base or --table are not touched. A disk that is being served is refused, and so is an
image that disks lie on.

On a terminal it asks first, unless --yes.`,
		Example:           "  cowblk rm vm1\n  cowblk rm --yes vm1 vm2 debian-12",
		Args:              atLeast(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames, imageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			removed := []*store.Removal{}
			for _, name := range slices.Compact(args) {
				r, rmErr := a.remove(cmd, s, name, yes)
				if r != nil {
					removed = append(removed, r)
				}
				if err = rmErr; err != nil {
					break
				}
			}
			if a.json {
				err = errors.Join(err, a.printJSON(removed))
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&yes, "force", "f", false, "same as --yes")
	_ = cmd.Flags().MarkHidden("force")
	return cmd
}

func (a *app) remove(cmd *cobra.Command, s *store.Store, name string, yes bool) (*store.Removal, error) {
	plan, err := s.PlanRemove(name)
	if err != nil {
		return nil, err
	}
	if !yes {
		ok, err := a.confirm(fmt.Sprintf("Remove %s %s (%s)?", plan.Kind, name, removalText(plan)))
		if err != nil || !ok {
			if err == nil {
				a.say("%s stays", name)
			}
			return nil, err
		}
	}
	r, err := s.Remove(cmd.Context(), name)
	if err != nil {
		return nil, err
	}
	a.say("removed %s %s (%s)", r.Kind, name, removalText(r))
	return r, nil
}

func removalText(r *store.Removal) string {
	text := bytesText(r.Freed)
	if r.Kind == store.KindDisk {
		text = countText(int64(len(r.Layers)), "layer") + ", " + text
		if len(r.Kept) > 0 {
			text += "; " + countText(int64(len(r.Kept)), "layer") + " shared or outside the store: kept"
		}
	}
	return text
}
