package store

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// One sentinel per decision a caller makes. Every error of this package wraps at most one of them.
var (
	// ErrInvalid: see finding.ErrInvalid.
	ErrInvalid = finding.ErrInvalid
	// ErrNotFound: no image, disk or tag of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrInUse: a process has the disk open, or other disks use the image.
	ErrInUse = errors.New("in use")
	// ErrBusy: another process is changing the store and did not finish in time.
	ErrBusy = errors.New("store is busy")
	// ErrRefused: what is on disk is damaged or is not what was recorded; see finding.Finding.
	ErrRefused = finding.ErrRefused
)

// refused returns an ErrRefused; see finding.New.
func refused(file, what string, expected, found any, advice string) *finding.Finding {
	return finding.New(nil, file, what, expected, found, advice)
}

// classified adds a sentinel of this package to an error of a lower package and keeps its text.
type classified struct {
	error
	as error
}

func (c *classified) Unwrap() []error { return []error{c.error, c.as} }

// Classify adds a sentinel of this package to an error of cow or cow/layer.
func Classify(err error) error {
	for _, c := range []struct {
		as   error
		from []error
	}{
		{ErrRefused, []error{
			layer.ErrNotLayer, layer.ErrUnsupported, layer.ErrDamaged, layer.ErrMismatch,
			layer.ErrNotSealed,
			layer.ErrSealed, layer.ErrNotZero, layer.ErrUnflushed, cow.ErrMismatch,
			cow.ErrBaseChanged, cow.ErrTruncated, vfs.ErrNotImage,
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
	return &noSpaceError{err: err, advice: "the file system of store " + shell.Text(s.dir) +
		" has no room left for this. Room comes from a larger file system or quota, " +
		"from other files and snapshots on it, and from disks and images of the store that nobody needs: to remove one takes no room, and " +
		s.command("list") + " shows what each takes. A disk with a damaged manifest gives room back only after its layers are pruned (" + s.command("check") + " shows those that no disk needs)"}
}

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

// cannotWrite reports whether an error means a file is not writable for this process: a read-only
// file system or a file of another user. It may still be readable.
func cannotWrite(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}

// noSpace reports whether an error means that the file system or the user's quota is full.
func noSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// isDamage reports whether a document is missing or unreadable because of its content: a retry
// would not help.
func isDamage(err error) bool {
	var io *fs.PathError
	for _, errno := range []error{fs.ErrNotExist, syscall.EISDIR, syscall.ENOTDIR, syscall.ELOOP,
		vfs.ErrNotFile} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return !errors.As(err, &io)
}
