package store

import "errors"

// fullError is an error for want of room, with what makes some.
type fullError struct {
	err    error
	advice string
}

func (e *fullError) Error() string { return e.err.Error() + "\n" + e.advice }

func (e *fullError) Unwrap() error { return e.err }

// full adds to an error for want of room what makes some; once. Other errors are returned as they are.
func (s *Store) full(err error) error {
	var said *fullError
	if !noSpace(err) || errors.As(err, &said) {
		return err
	}
	return &fullError{err: err, advice: "the file system of store " + PathText(s.dir) + " has no room left for this. Room comes from a larger file system or quota, " +
		"from other files and snapshots on it, and from disks and images of the store that nobody needs: to remove one takes no room, and " +
		s.command("list") + " shows what each takes. A disk with a damaged manifest gives room back only after its layers are pruned (" + s.command("check") + " shows those that no disk needs)"}
}
