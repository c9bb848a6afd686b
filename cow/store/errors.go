package store

import (
	"errors"
	"fmt"
	"strings"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// One sentinel per decision a caller makes. Every error of this package wraps at most one of them.
var (
	// ErrInvalid: the request itself makes no sense (a name, a size, options that exclude each
	// other).
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound: no image, disk or tag of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrInUse: a process has the disk open, or other disks use the image.
	ErrInUse = errors.New("in use")
	// ErrBusy: another process is changing the store and did not finish in time.
	ErrBusy = errors.New("store is busy")
	// ErrRefused: what is on disk is damaged or is not what was recorded; see Mismatch.
	ErrRefused = errors.New("refused")
)

// Mismatch is an ErrRefused that names the file, the expected and the found value, and the next
// step.
type Mismatch struct {
	File     string // path of the wrong file
	What     string // the property
	Expected string
	Found    string
	Advice   string // what the user can do; may be empty

	cause error // the error behind Found; may be nil
}

func (m *Mismatch) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: expected %s, found %s", PathText(m.File), m.What, m.Expected, m.Found)
	if m.Advice != "" {
		b.WriteString("\n" + m.Advice)
	}
	return b.String()
}

// Unwrap makes errors.Is(err, ErrRefused) true.
func (m *Mismatch) Unwrap() error { return ErrRefused }

// usageError is an ErrInvalid with a message that does not repeat the sentinel's text.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }
func (e *usageError) Unwrap() error { return ErrInvalid }

func invalidf(format string, args ...any) error {
	return &usageError{msg: fmt.Sprintf(format, args...)}
}

// classified adds a sentinel of this package to an error of a lower package and keeps its text.
type classified struct {
	error
	as error
}

func (c *classified) Unwrap() []error { return []error{c.error, c.as} }

// Classify adds a sentinel of this package to an error of cow, for a file that is opened without a
// store.
func Classify(err error) error { return classify(err) }

// classify adds a sentinel of this package to an error of cow or cow/layer.
func classify(err error) error {
	for _, c := range []struct {
		as   error
		from []error
	}{
		{ErrRefused, []error{
			layer.ErrNotLayer, layer.ErrUnsupported, layer.ErrDamaged, layer.ErrMismatch, layer.ErrNotSealed,
			layer.ErrSealed, layer.ErrNotZero, layer.ErrUnflushed, cow.ErrMismatch, cow.ErrBaseChanged, cow.ErrTruncated, vfs.ErrNotImage,
		}},
		{ErrInUse, []error{layer.ErrInUse, vfs.ErrImageLocked, vfs.ErrSystemUses}},
		{ErrInvalid, []error{layer.ErrInvalid, cow.ErrSpec}},
	} {
		for _, from := range c.from {
			if errors.Is(err, from) {
				return &classified{err, c.as}
			}
		}
	}
	return err
}

// noSpaceError adds advice to an ENOSPC or EDQUOT error.
type noSpaceError struct {
	err    error
	advice string
}

func (e *noSpaceError) Error() string { return e.err.Error() + "\n" + e.advice }

func (e *noSpaceError) Unwrap() error { return e.err }

// adviseNoSpace adds advice to an ENOSPC or EDQUOT error, once. It returns other errors as they
// are.
func (s *Store) adviseNoSpace(err error) error {
	var advised *noSpaceError
	if !noSpace(err) || errors.As(err, &advised) {
		return err
	}
	return &noSpaceError{err: err, advice: "the file system of store " + PathText(s.dir) + " has no room left for this. Room comes from a larger file system or quota, " +
		"from other files and snapshots on it, and from disks and images of the store that nobody needs: to remove one takes no room, and " +
		s.command("list") + " shows what each takes. A disk with a damaged manifest gives room back only after its layers are pruned (" + s.command("check") + " shows those that no disk needs)"}
}
