package store

import (
	"errors"
	"fmt"
	"strings"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
)

// command returns a command line for an error's advice: the program on this store, with words
// quoted for a shell.
func (s *Store) command(words ...string) string {
	return s.program + " " + shell.Line(words...)
}

// listText joins a list for a message.
func listText(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// nameError says that the name in a document differs from the name of its directory: somebody
// copied or renamed the directory by hand.
type nameError struct{ expected, found string }

func (e *nameError) Error() string {
	return fmt.Sprintf("name: expected %q, found %q", e.expected, e.found)
}

// adviseName adds advice to a refusal because of a document's name. If the disk of that name
// exists, the directory is a copy, and two disks cannot write one head. Otherwise the directory was
// renamed. An image has its content beside the document.
func (s *Store) adviseName(kind, path string, err error) error {
	var m *finding.Finding
	var other *nameError
	if !errors.As(err, &m) || !errors.As(err, &other) {
		return err
	}
	rename := fmt.Sprintf("set its name to %q in %s", other.expected, shell.Path(path))
	m.Advice = fmt.Sprintf("this is the document of %s %q. If the directory was renamed by hand: %s", kind, other.found, rename)
	if kind != "disk" || CheckName("disk", other.found) != nil {
		return err
	}
	if exists, serr := s.exists(s.path(disksDir, other.found)); serr == nil && !exists {
		return err
	}
	m.Advice = fmt.Sprintf("this is the manifest of disk %[1]q, copied by hand: it names that disk's layers, which no other disk can write to. It has none of its own: "+
		"move the directory out of the store\nfor another disk with the same content: %[2]s, then %[3]s", other.found,
		s.command("promote", other.found, "--tag", "TAG"), s.command("create", "NEW", "--from", other.found+"@TAG"))
	return err
}
