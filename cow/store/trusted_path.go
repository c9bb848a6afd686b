package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// Trusted refuses a store through which somebody else could lead this process to files or to processes of his choice,
// before anything in it is opened, changed or removed, and before what its lock files say is believed: what is below is
// found by name. It also refuses a directory that is no store and has something else in it: see recognised. Nobody but root and this user may be able to put another directory in the place of the store, of a
// directory on the way to it or of one in it. Root trusts no group; other users trust those that they or root let write to
// a directory. To list another store and to look into it is no danger. It is an ErrInvalid.
func (s *Store) Trusted() error { return s.trusted() }

func (s *Store) trusted() error {
	if err := s.trustedPath(); err != nil {
		return err
	}
	return s.recognize()
}

// trustedPath is Trusted of a directory that need not be a store.
func (s *Store) trustedPath() error {
	// Sockets and bases of its disks would have paths that the documents cannot hold.
	if err := checkPathText("store", s.dir); err != nil {
		return err
	}
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	if s.trustKnown {
		return s.trust
	}
	made, err := checkStore(s.dir)
	// One that is still to be made is looked at again then: somebody else may make it meanwhile, as in /tmp.
	s.trust, s.trustKnown = err, made
	return err
}

// pathOptions: root cannot know who belongs to a group tomorrow. A user's own group, or that of a team, is often let in
// by the umask.
func pathOptions() way.Options { return way.Options{Group: os.Geteuid() != 0} }

// checkStore is Trusted of the store in dir. made: the directory is there.
func checkStore(dir string) (made bool, err error) {
	untrusted, err := way.Check(dir, pathOptions())
	switch {
	case untrusted != nil:
		return true, untrustedStore(dir, untrusted)
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // it is made by this process
	case err != nil:
		return true, fmt.Errorf("store %s: %w", dir, err)
	}
	if err := checkDirMode(dir, "store "+dir); err != nil {
		return true, err
	}
	for _, name := range []string{imagesDir, layersDir, disksDir, tmpDir, indexDir, reserveDir} {
		var st unix.Stat_t
		path := filepath.Join(dir, name)
		if unix.Lstat(path, &st) != nil {
			continue
		}
		if !way.Trusted(st.Uid) {
			return true, invalidf("store %s: %s: expected a directory of the store's owner, found a file of mode %06o of user %s, who can lead this process to any file through it\nuse another store, or have its owner give it back", dir, name, st.Mode, way.UserName(st.Uid))
		}
		untrusted, err := way.Check(path, pathOptions())
		if err == nil && untrusted == nil {
			err = checkDirMode(path, fmt.Sprintf("store %s: %s", dir, name))
		}
		switch {
		case untrusted != nil && untrusted.End && way.Trusted(untrusted.UID):
			return true, writable(fmt.Sprintf("store %s: %s", dir, name), untrusted.Mode)
		case untrusted != nil:
			return true, invalidf("store %s: %s leads through %s: %s can lead this process to any file there\nput what it leads to where only %s can change it", dir, name, untrusted, untrusted.WhoCanChange(), trustedUsers())
		case errors.Is(err, ErrInvalid):
			return true, err
		}
	}
	return true, nil
}

// trustedDisk refuses a disk whose directory is another user's, or a symbolic link to where others can change it: its
// manifest and its lock file say what they want. One that is not there is none's. The store is Trusted.
func (s *Store) trustedDisk(name string) error {
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	untrusted, _ := way.Check(s.path(disksDir, name), pathOptions()) // whoever opens it says what is wrong
	if untrusted == nil {
		return nil
	}
	return invalidf("disk %q: expected a directory that only %s can change, found %s: %s can lead this process to any file through it", name, trustedUsers(), untrusted, untrusted.WhoCanChange())
}

// checkDirMode refuses a directory in which others can make entries. The sticky bit does not help: the entries that a store
// is to have may not be there yet.
func checkDirMode(dir, what string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil // whoever uses it says so
	}
	others := uint32(0o022)
	if pathOptions().Group {
		others = 0o002
	}
	if st.Mode&others != 0 {
		return writable(what, st.Mode&0o7777)
	}
	return nil
}

// writable is the error about a directory of root's or this user's own that others can write to.
func writable(what string, mode uint32) error {
	who := "others"
	if mode&0o002 == 0 {
		who = "its group"
	}
	return invalidf("%s: expected a directory that others cannot write to, found mode %04o: %s can lead this process to any file through it\nuse a directory of its own, that nobody else can write to",
		what, mode, who)
}

// untrustedStore is the error about the way to the store in dir.
func untrustedStore(dir string, untrusted *way.Untrusted) error {
	stranger := !way.Trusted(untrusted.UID)
	name := way.UserName(untrusted.UID)
	switch {
	case untrusted.End && !stranger:
		return writable("store "+dir, untrusted.Mode)
	case untrusted.End && os.Geteuid() == 0:
		return invalidf("store %s: expected one of root's, found one of user %s, who can lead root to any file through it\nrun cowblk as that user: sudo -u %s cowblk ...", dir, name, sudoName(untrusted.UID))
	case untrusted.End:
		return invalidf("store %s: expected one that only %s can change, found one of user %s, who can lead this process to any file through it\nuse a store of your own", dir, trustedUsers(), name)
	}
	err := invalidf("store %s: expected a way to it that only %s can change, found %s: %s can put another store in its place", dir, trustedUsers(), untrusted, untrusted.WhoCanChange())
	advice := "put the store elsewhere, as into a directory that only " + trustedUsers() + " can change"
	if stranger && os.Geteuid() == 0 {
		advice += fmt.Sprintf("; if it is a store of that user, run cowblk as that user: sudo -u %s cowblk ...", sudoName(untrusted.UID))
	}
	return fmt.Errorf("%w\n%s", err, advice)
}

// sudoName is a user as sudo(8) takes it, for a shell.
func sudoName(uid uint32) string {
	name := way.UserName(uid)
	if name == strconv.FormatUint(uint64(uid), 10) {
		name = "#" + name
	}
	return shell.Word(name)
}

// trustedUsers are those whose changes this process trusts: "root", "root and alice".
func trustedUsers() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return "root and " + way.UserName(uint32(os.Geteuid()))
}

// CheckRunDir refuses a RunDir in which another user could put sockets of his own in the place of this user's. One that is
// not there yet is none's. It is an ErrInvalid.
func (s *Store) CheckRunDir() error { return s.trustedRunDir(s.runDir, true) }

// trustedRunDir is CheckRunDir of any directory for sockets. restrictable: it may be this user's or root's own with a mode
// that is yet to be restricted.
func (s *Store) trustedRunDir(dir string, restrictable bool) error {
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	untrusted, err := way.Check(dir, pathOptions())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("run directory: %w", err)
	case untrusted == nil:
		// In one that is sticky others can take the names of sockets.
		if err := checkDirMode(dir, "run directory "+dir); err != nil && !restrictable {
			return err
		}
		return nil
	case untrusted.End && way.Trusted(untrusted.UID):
		if restrictable {
			return nil
		}
		return writable("run directory "+dir, untrusted.Mode)
	}
	err = invalidf("run directory %s: expected one that only %s can change, found %s: %s can put a socket in the place of one there", dir, trustedUsers(), untrusted, untrusted.WhoCanChange())
	if from := s.getenv(runtimeEnv); filepath.IsAbs(from) && within(from, dir) {
		return fmt.Errorf("%w\n%s is %s: set it to a directory of your own that nobody else can write to, as logging in does", err, runtimeEnv, shell.Word(from))
	}
	return fmt.Errorf("%w\nuse a store in a directory that only %s can change, or give this one back to its owner", err, trustedUsers())
}
