package store

import (
	"errors"
	"fmt"

	"cowblk/cow/shell"
)

// nameError: a document has another name than its directory, which somebody has copied or renamed by hand.
type nameError struct{ expected, found string }

func (e *nameError) Error() string {
	return fmt.Sprintf("name: expected %q, found %q", e.expected, e.found)
}

// adviseName gives the refusal of a document for its name the way on. A second manifest with the layers of a disk that is
// there is no disk: two heads cannot be one file. What is alone was renamed. An image has its content beside it.
func (s *Store) adviseName(kind, path string, err error) error {
	var m *Mismatch
	var other *nameError
	if !errors.As(err, &m) || !errors.As(m.cause, &other) {
		return err
	}
	rename := fmt.Sprintf("set its name to %q in %s", other.expected, shell.Path(path))
	m.Advice = fmt.Sprintf("this is the document of %s %q. If the directory was renamed by hand: %s", kind, other.found, rename)
	if kind != "disk" || CheckName("disk", other.found) != nil {
		return err
	}
	if there, serr := s.exists(s.path(disksDir, other.found)); serr == nil && !there {
		return err
	}
	m.Advice = fmt.Sprintf("this is the manifest of disk %[1]q, copied by hand: it names that disk's layers, which no other disk can write to. It has none of its own: "+
		"move the directory out of the store\nfor another disk with the same content: %[2]s, then %[3]s", other.found,
		s.command("promote", other.found, "--tag", "TAG"), s.command("create", "NEW", "--from", other.found+"@TAG"))
	return err
}
