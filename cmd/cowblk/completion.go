package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// completion returns the candidates for an argument whose beginning has been typed.
type completion func(s *store.Store, typed string) []cobra.Completion

// complete offers the candidates for the first max arguments (-1: any number), without those
// already given.
func (a *app) complete(max int, from ...completion) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion,
		cobra.ShellCompDirective) {
		if max >= 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		s, err := a.openStore()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var all []cobra.Completion
		for _, f := range from {
			for _, c := range f(s, typed) {
				if strings.HasPrefix(c, typed) && !slices.Contains(args, c) {
					all = append(all, c)
				}
			}
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// Errors are ignored here: a store that can be read in part completes in part, and the command
// itself reports the error. Names come from directory entries; no document is read.

func diskNames(s *store.Store, _ string) []cobra.Completion {
	names, _ := s.DiskNames()
	return names
}

func imageNames(s *store.Store, _ string) []cobra.Completion {
	names, _ := s.ImageNames()
	return names
}

// tagNames returns the tags, NAME@TAG, of the disks that match the typed text. If more than
// maxTagDisks match, it returns NAME@ of each.
func tagNames(s *store.Store, typed string) (tags []cobra.Completion) {
	names, _ := s.DiskNames()
	disk, _, named := strings.Cut(typed, "@")
	names = slices.DeleteFunc(names, func(name string) bool {
		return named && name != disk || !strings.HasPrefix(name, disk)
	})
	if len(names) > maxTagDisks {
		for _, name := range names {
			tags = append(tags, name+"@")
		}
		return tags
	}
	for _, name := range names {
		m, err := s.Disk(name)
		if err != nil {
			continue
		}
		for _, l := range m.Sealed() {
			if l.Tag != "" {
				tags = append(tags, name+"@"+l.Tag)
			}
		}
	}
	return tags
}

// maxTagDisks bounds the disks whose tags are offered, because each manifest is read for it.
const maxTagDisks = 8
