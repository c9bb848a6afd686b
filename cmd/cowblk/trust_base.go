package main

import (
	"github.com/spf13/cobra"
)

func newTrustBase(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "trust-base NAME",
		Short: "Accept a disk's base again after its modification time changed",
		Long: `Record the present size and modification time of a disk's base (create --base, --table),
if the samples of its content still match. A disk is refused after they have changed,
because a change of the base's content would corrupt the disk. Use this only if you know
that the content is the same.`,
		Example:           "  touch /srv/golden.img\n  cowblk trust-base vm1",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.complete(1, diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.openTrusted()
			if err != nil {
				return err
			}
			m, err := s.TrustBase(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(m.Base)
			}
			a.printf("disk %s: its base %s is accepted as it is now", m.Name, m.Base)
			return nil
		},
	}
}
