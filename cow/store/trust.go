package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// trusted refuses a store through which somebody else could lead this process to files of his choice, before anything
// in it is opened, changed or removed: what is below is found by name. Of root that is any other user's store, of
// everybody one that all may write to, and a directory of the store that somebody else has replaced by a symbolic link. It
// also refuses a directory that is no store and has something else in it: see recognised.
// To list such a store and to look into it is no danger. It is an ErrInvalid.
func (s *Store) trusted() error {
	// Sockets and bases of its disks would have paths that the documents cannot hold.
	if err := checkPathText("store", s.dir); err != nil {
		return err
	}
	if _, real := s.fs.(vfs.HostFS); real {
		s.trustOnce.Do(func() { s.trust = checkOwner(s.dir, os.Geteuid()) })
		if s.trust != nil {
			return s.trust
		}
	}
	return s.recognised()
}

func checkOwner(dir string, me int) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is made by this process
		}
		return fmt.Errorf("store %s: %w", dir, err)
	}
	mine := func(uid uint32) bool { return uid == 0 || int(uid) == me }
	switch {
	case me == 0 && !mine(st.Uid):
		name := userName(st.Uid)
		return invalidf("store %s: expected one of root's, found one of user %s, who can lead root to any file through it\nrun cowblk as that user: sudo -u %s cowblk ...",
			dir, name, name)
	case st.Mode&0o002 != 0:
		return invalidf("store %s: expected a directory that others cannot write to, found mode %04o: they can lead this process to any file through it\nuse a directory of its own, that nobody else can write to",
			dir, st.Mode&0o7777)
	}
	for _, name := range []string{imagesDir, layersDir, disksDir, tmpDir, indexDir, reserveDir} {
		if unix.Lstat(dir+"/"+name, &st) != nil || mine(st.Uid) {
			continue
		}
		if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFLNK || me == 0 {
			return invalidf("store %s: %s: expected a directory of the store's owner, found a file of mode %06o of user %s", dir, name, st.Mode, userName(st.Uid))
		}
	}
	return nil
}

// userName is the name of a user, or the number of one who has none.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
