package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// trusted refuses a store through which somebody else could lead this process to files of his choice, before anything
// in it is opened, changed or removed: what is below is found by name. Of root that is any other user's store, of
// everybody one that all may write to, and a directory of the store that somebody else has replaced by a symbolic link.
// To list such a store and to look into it is no danger. It is an ErrInvalid.
func (s *Store) trusted() error {
	// Sockets and bases of its disks would have paths that the documents cannot hold.
	if err := checkPathText("store", s.dir); err != nil {
		return err
	}
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	s.trustOnce.Do(func() { s.trust = checkOwner(s.dir, os.Geteuid()) })
	return s.trust
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
		return invalidf("store %s: expected a directory that others cannot write to, found mode %04o: they can lead this process to any file through it\nif all in it is yours: chmod o-w",
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

// mayBecome refuses to make a store of a directory that holds something else: a file system's root, somebody's home. What
// is in its tmp/ is no work of cowblk's, and its mode is not cowblk's to set. The directory has no lock file.
func (s *Store) mayBecome() error {
	entries, err := s.fs.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == lockFile:
			return nil // another process has made the store just now
		case name == "lost+found" || strings.HasPrefix(name, "."):
		case s.path(name) == s.runDir: // with sockets
		case s.looksOwn(name): // a power cut has taken the lock file away
		default:
			return invalidf("store %s: expected a store or an empty directory, found %s in it, and no lock file of a store\nname a directory of its own",
				s.dir, PathText(name))
		}
	}
	return nil
}

// looksOwn reports whether one of the directories of a store holds what cowblk puts there, and nothing else.
func (s *Store) looksOwn(dir string) bool {
	own := map[string]func(e fs.DirEntry) bool{
		tmpDir:     isWork,
		layersDir:  func(e fs.DirEntry) bool { return isWork(e) && !isRemoval(e.Name()) },
		indexDir:   func(e fs.DirEntry) bool { return strings.TrimSuffix(e.Name(), vfs.TempSuffix) == indexFile },
		reserveDir: func(e fs.DirEntry) bool { return !e.IsDir() },
		imagesDir:  func(e fs.DirEntry) bool { return s.holds(dir, e, imageFile) },
		disksDir:   func(e fs.DirEntry) bool { return s.holds(dir, e, diskFile) },
	}[dir]
	if own == nil {
		return false
	}
	entries, err := s.fs.ReadDir(s.path(dir))
	if err != nil {
		return false
	}
	for _, e := range entries {
		if !own(e) {
			return false
		}
	}
	return true
}

func (s *Store) holds(dir string, e fs.DirEntry, file string) bool {
	there, err := s.exists(s.path(dir, e.Name(), file))
	return err == nil && there
}

// userName is the name of a user, or the number of one who has none.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
