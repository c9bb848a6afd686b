package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newRemove(a *app) *cobra.Command {
	var yes, damaged bool
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove disks and images",
		Long: `Remove disks and images, in the given order. Layers that other disks use are kept; files and devices of
--base or --table are not touched. A served disk is refused, and so is an image with disks on it. A name
that does not exist is refused before anything is removed.

--damaged removes the remains of a disk whose manifest (disk.json) is missing or damaged, and frees its
name. All of its layers are kept, because it is unknown which of them other disks use; "cowblk check"
shows layers that no disk uses. Before this, a backup of the manifest could restore the disk.

On a terminal the command asks before each removal; otherwise --yes is needed. Input from a pipe never
confirms. If it is interrupted, it reports what was removed and what was not.`,
		Example:           "  cowblk rm vm1\n  cowblk rm --yes vm1 vm2 debian-12",
		Args:              distinctArgs(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames, imageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := checkExists(s, name); err != nil {
					return err
				}
				if damaged {
					if _, err := s.PlanRemoveDamaged(name); err != nil {
						return err
					}
				}
			}
			removed, err := a.removeAll(cmd.Context(), s, args, removeOptions{yes: yes,
				damaged: damaged})
			if a.json {
				err = errors.Join(err, a.printJSON(removed))
			}
			return err
		},
	}
	registerYes(cmd, &yes)
	cmd.Flags().BoolVar(&damaged, "damaged", false,
		"remove the remains of disks whose manifest is missing or damaged")
	return cmd
}

// removeOptions holds the options of "cowblk rm".
type removeOptions struct {
	yes     bool // do not ask
	damaged bool // only disks with a damaged manifest
}

// registerYes adds --yes, and --force for older scripts.
func registerYes(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask; needed without a terminal")
	cmd.Flags().BoolVarP(yes, "force", "f", false, "same as --yes")
	_ = cmd.Flags().MarkHidden("force")
}

// checkExists returns an error for a name that is invalid or does not exist. It ignores other
// errors, which the removal reports.
func checkExists(s *store.Store, name string) error {
	if err := store.CheckName("disk or image", name); err != nil {
		return err
	}
	_, err := s.Image(name)
	if errors.Is(err, store.ErrNotFound) {
		_, err = s.Disk(name)
	}
	if errors.Is(err, store.ErrNotFound) {
		if names, derr := s.DiskNames(); derr == nil && slices.Contains(names, name) {
			return nil
		}
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalid) {
		return err
	}
	return nil
}

// removeAll removes names in order and stops at the first error, which lists the names that were
// removed and those that were not.
func (a *app) removeAll(ctx context.Context, s *store.Store, names []string,
	o removeOptions) ([]*store.Removal, error) {
	removed := []*store.Removal{}
	for i, name := range names {
		err := ctx.Err()
		if err == nil {
			var r *store.Removal
			if r, err = a.remove(ctx, s, name, o); r != nil {
				removed = append(removed, r)
			}
		}
		if err == nil {
			continue
		}
		done, left := names[:i], names[i:]
		switch {
		case errors.Is(err, context.Canceled) && len(done) > 0:
			others := withoutCanceled(err)
			err = errors.Join(append([]error{interruptedf("removed %s; not removed: %s",
				strings.Join(done, ", "), strings.Join(left, ", "))}, others...)...)
		case errors.Is(err, errNotConfirmed) && len(done) == 0:
			err = notConfirmed(err)
		case len(names) > 1 && !errors.Is(err, context.Canceled):
			err = fmt.Errorf("%w\n%s", err, removedText(done, left))
		}
		return removed, err
	}
	return removed, nil
}

// removedText describes the progress of a removal of several names.
func removedText(done, left []string) string {
	text := "not removed: " + strings.Join(left, ", ")
	if len(done) > 0 {
		text = "removed: " + strings.Join(done, ", ") + "; " + text
	}
	return text
}

func (a *app) remove(ctx context.Context, s *store.Store, name string,
	o removeOptions) (*store.Removal, error) {
	plan, do := s.PlanRemove, s.Remove
	if o.damaged {
		plan, do = s.PlanRemoveDamaged, s.RemoveDamaged
	}
	p, err := plan(name)
	if err != nil {
		return nil, err
	}
	if !o.yes {
		if err := a.confirm(ctx, fmt.Sprintf("Remove %s %s (%s)?", p.Kind, name,
			removalText(p))); err != nil {
			return nil, err
		}
	}
	r, err := do(ctx, name)
	if err != nil {
		return nil, err
	}
	a.printf("removed %s %s (%s)", r.Kind, name, removalText(r))
	return r, nil
}

func removalText(r *store.Removal) string {
	if r.Damaged {
		return "its manifest is damaged; all layers are kept"
	}
	text := bytesText(r.Freed)
	if r.Kind == store.KindDisk {
		text = countText(int64(len(r.Layers)), "layer") + ", " + text
		if len(r.Kept) > 0 {
			text += "; " + countText(int64(len(r.Kept)), "layer") +
				" shared or outside the store: kept"
		}
	}
	return text
}
