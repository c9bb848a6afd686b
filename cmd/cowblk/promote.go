package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

func newPromote(a *app) *cobra.Command {
	var tag string
	cmd := &cobra.Command{
		Use:   "promote NAME... [--tag TAG]",
		Short: "Seal a disk's head under a tag and put a new head on top",
		Long: `Seal the head of a stopped disk: what it holds now gets a name, never changes again, and
other disks can be created from it. A new, empty head goes on top. Nothing is copied.

A disk that is being served has to be stopped first.`,
		Example: `  cowblk promote vm1 --tag before-upgrade
  cowblk create vm2 --from vm1@before-upgrade`,
		Args:              atLeast(1, "NAME"),
		ValidArgsFunction: a.complete(-1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openStore()
			if err != nil {
				return err
			}
			done := []*store.Promotion{}
			for _, name := range args {
				p, perr := s.Promote(cmd.Context(), name, tag)
				if perr != nil {
					if errors.Is(perr, store.ErrInUse) {
						perr = fmt.Errorf("%w\n%q can be promoted when it is stopped", perr, name)
					}
					err = perr
					break
				}
				done = append(done, p)
				a.say("%s@%s is sealed; %s now has %s", p.Disk, p.Tag, p.Disk, countText(int64(p.Depth), "layer"))
			}
			if a.json {
				err = errors.Join(err, a.printJSON(done))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&tag, "tag", "", "`TAG` of the sealed layer (default: the time, as 20061127T120000Z)")
	return cmd
}
