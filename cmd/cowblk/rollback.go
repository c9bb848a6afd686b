package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newRollback(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rollback NAME@TAG",
		Short: "Take a stopped disk back to one of its tags",
		Long: `Take a disk back to one of its tags: what the guest has written since, and the tags made since, are
discarded, and a new, empty head goes on top of the tag. The disk must be stopped. Layers that other
disks use stay for them. To look at a tag, or to go on from it without losing anything, make a new
disk instead: cowblk create NEW --from NAME@TAG.

On a terminal it asks first, unless --yes.`,
		Example:           "  cowblk rollback vm1@before-upgrade",
		Args:              exactArgs("NAME@TAG"),
		ValidArgsFunction: a.complete(1, tagNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := store.ParseRef(args[0])
			if err != nil {
				return err
			}
			s, err := a.openStore()
			if err != nil {
				return err
			}
			return a.rollback(cmd, s, ref, yes)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&yes, "force", "f", false, "same as --yes")
	_ = cmd.Flags().MarkHidden("force")
	return cmd
}

func (a *app) rollback(cmd *cobra.Command, s *store.Store, ref store.Ref, yes bool) error {
	plan, err := s.PlanRollback(ref)
	if err != nil {
		return err
	}
	if !yes {
		ok, err := a.confirm(fmt.Sprintf("Discard everything in %s that is newer than %s: %s?", ref.Name, ref, lossText(plan)))
		if err != nil || !ok {
			if err == nil {
				a.say("%s stays as it is", ref.Name)
			}
			return err
		}
	}
	r, err := s.Rollback(cmd.Context(), ref)
	if err != nil {
		return err
	}
	a.say("%s is back at %s; discarded: %s", r.Disk, ref, lossText(r))
	if a.json {
		return a.printJSON(r)
	}
	return nil
}

// lossText says what a rollback costs: "tags t2, t3; 3 layers, 1.2 GiB; 1 layer stays for vm2".
func lossText(r *store.Rollback) string {
	var parts []string
	switch len(r.Lost) {
	case 0:
	case 1:
		parts = append(parts, "tag "+r.Lost[0])
	default:
		parts = append(parts, "tags "+strings.Join(r.Lost, ", "))
	}
	parts = append(parts, countText(int64(len(r.Layers)), "layer")+", "+bytesText(r.Freed))
	switch {
	case len(r.KeptBy) > 0:
		parts = append(parts, fmt.Sprintf("%s more for %s: kept", countText(int64(len(r.Kept)), "layer"), strings.Join(r.KeptBy, ", ")))
	case len(r.Kept) > 0:
		parts = append(parts, countText(int64(len(r.Kept)), "layer")+" outside the store: kept")
	}
	return strings.Join(parts, "; ")
}
