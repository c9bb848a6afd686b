package main

import (
	"slices"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// What a shell offers for an argument.
type completion func(s *store.Store) []cobra.Completion

// complete offers the candidates for the first max arguments (-1: any number), each once.
func (a *app) complete(max int, from ...completion) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if max >= 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, err := a.openStore()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var all []cobra.Completion
		for _, f := range from {
			for _, c := range f(s) {
				if !slices.Contains(args, c) {
					all = append(all, c)
				}
			}
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// A store that can be read in part is completed in part: the errors come when the command runs.

func diskNames(s *store.Store) (names []cobra.Completion) {
	disks, _ := s.Disks()
	for _, m := range disks {
		names = append(names, m.Name)
	}
	return names
}

func imageNames(s *store.Store) (names []cobra.Completion) {
	images, _ := s.Images()
	for _, img := range images {
		names = append(names, img.Name)
	}
	return names
}

func tagNames(s *store.Store) (names []cobra.Completion) {
	disks, _ := s.Disks()
	for _, m := range disks {
		for _, l := range m.Sealed() {
			if l.Tag != "" {
				names = append(names, m.Name+"@"+l.Tag)
			}
		}
	}
	return names
}
