package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newRollback(a *app) *cobra.Command {
	var yes, discardTags bool
	cmd := &cobra.Command{
		Use:   "rollback NAME@TAG",
		Short: "Return a stopped disk to one of its tags",
		Long: `Return a disk to one of its tags: all later writes are discarded, and a new, empty head is put on the
tag. The disk must be stopped. Layers that other disks use are kept. To inspect a tag, or to continue
from it without losing anything, make a new disk instead: cowblk create NEW --from NAME@TAG.

Later tags would be lost, too, which always needs --discard-tags. On a terminal the command asks first;
otherwise --yes is needed. Input from a pipe never confirms.`,
		Example:           "  cowblk rollback vm1@before-upgrade\n  cowblk rollback vm1@monday --discard-tags",
		Args:              exactArgs("NAME@TAG"),
		ValidArgsFunction: a.complete(1, tagNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := store.ParseRef(args[0])
			if err != nil {
				return err
			}
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			return a.rollback(cmd.Context(), s, ref, yes, discardTags)
		},
	}
	registerYes(cmd, &yes)
	cmd.Flags().BoolVar(&discardTags, "discard-tags", false, "also discard the tags that are newer")
	return cmd
}

func (a *app) rollback(ctx context.Context, s *store.Store, ref store.Ref, yes,
	discardTags bool) error {
	plan, err := s.PlanRollback(ctx, ref)
	if err != nil {
		return err
	}
	if len(plan.Lost) > 0 && !discardTags {
		verb := "are"
		if len(plan.Lost) == 1 {
			verb = "is"
		}
		return unconfirmedf("rollback to %s would discard %s of disk %q that %s newer: %s\n--discard-tags confirms that; to keep them, make a new disk: %s",
			ref, countText(int64(len(plan.Lost)), "tag"), ref.Name, verb, firstNames(plan.Lost, 10),
			a.command("create", "NEW", "--from", ref.String()))
	}
	if !yes {
		if err := a.confirm(ctx, fmt.Sprintf("Discard everything in %s that is newer than %s: %s?",
			ref.Name, ref, lossText(plan))); err != nil {
			return notConfirmed(err)
		}
	}
	r, err := s.RollbackLosing(ctx, ref, plan.Lost)
	if err != nil {
		return err
	}
	a.printf("%s is back at %s; discarded: %s", r.Disk, ref, lossText(r))
	if a.json {
		return a.printJSON(r)
	}
	return nil
}

// lossText describes what a rollback discards: "tags t2, t3; 3 layers, 1.2 GiB; 1 layer stays for
// vm2".
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
		parts = append(parts, fmt.Sprintf("%s more for %s: kept", countText(int64(len(r.Kept)),
			"layer"), strings.Join(r.KeptBy, ", ")))
	case len(r.Kept) > 0:
		parts = append(parts, countText(int64(len(r.Kept)), "layer")+" outside the store: kept")
	}
	return strings.Join(parts, "; ")
}

// firstNames joins at most most names: "a, b, c and 7 more".
func firstNames(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
