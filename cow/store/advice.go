package store

import (
	"strings"

	"cowblk/cow/shell"
)

// command is a command line that an error advises: the program, on this store, with words quoted for a shell.
func (s *Store) command(words ...string) string {
	return s.program + " " + shell.Line(words...)
}

// listText writes a list for a person.
func listText(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}
