package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// Trusted refuses a store through which another user could redirect this process to other files or
// processes. It is called before anything in the store is opened, changed or removed, and before a
// lock file is used, because files are found by name. Only root and this user may be able to
// replace the store, a directory on the path to it, or a directory in it. Root trusts no group;
// another user trusts a group that may write to a directory of that user or of root. Trusted also
// refuses a directory that is not a store and contains something else: see recognize. Listing an
// untrusted store is harmless. It is an ErrInvalid.
func (s *Store) Trusted() error {
	if err := s.trustedPath(); err != nil {
		return err
	}
	return s.recognize()
}

// trustedPath is Trusted for a directory that need not be a store.
func (s *Store) trustedPath() error {
	// The documents could not represent the paths of its sockets and bases.
	if err := finding.CheckPath("store", s.dir); err != nil {
		return err
	}
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	if s.trustKnown {
		return s.trustErr
	}
	made, err := checkStore(s.dir)
	// A missing directory is checked again once it exists: another user may create it, as in /tmp.
	s.trustErr, s.trustKnown = err, made
	return err
}

// pathOptions trusts groups, except for root: root cannot know the future members of a group. The
// umask of other users often permits writes by their own group or a team.
func pathOptions() way.Options { return way.Options{Group: os.Geteuid() != 0} }

// checkStore is Trusted for the store in dir. made: the directory exists.
func checkStore(dir string) (made bool, err error) {
	untrusted, err := way.Check(dir, pathOptions())
	switch {
	case untrusted != nil:
		return true, untrustedStore(dir, untrusted)
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // this process creates it
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
			return true, finding.Invalidf(
				"store %s: %s: expected a directory of the store's owner, found a file of mode %06o of user %s, who can lead this process to any file through it\nuse another store, or have its owner give it back", dir, name, st.Mode, way.UserName(st.Uid))
		}
		untrusted, err := way.Check(path, pathOptions())
		if err == nil && untrusted == nil {
			err = checkDirMode(path, fmt.Sprintf("store %s: %s", dir, name))
		}
		switch {
		case untrusted != nil && untrusted.End && way.Trusted(untrusted.UID):
			return true, writable(fmt.Sprintf("store %s: %s", dir, name), untrusted.Mode)
		case untrusted != nil:
			return true, finding.Invalidf(
				"store %s: %s leads through %s: %s can lead this process to any file there\nput what it leads to where only %s can change it", dir, name, untrusted, untrusted.WhoCanChange(), trustedUsers())
		case errors.Is(err, ErrInvalid):
			return true, err
		}
	}
	return true, nil
}

// trustedDisk refuses a disk whose directory belongs to another user or is a symbolic link to a
// directory that others can change: its manifest and lock file cannot be trusted. It also refuses a
// manifest that is a link to where others can replace it. A missing disk is accepted. The store
// must be Trusted.
func (s *Store) trustedDisk(name string) error {
	if _, real := s.fs.(vfs.HostFS); !real {
		return nil
	}
	untrusted, _ := way.Check(s.path(disksDir, name), pathOptions()) // the open reports the error
	if untrusted == nil {
		check := newFileChecker()
		defer check.Close()
		return s.trustedFile(check, fmt.Sprintf("disk %q", name), s.path(disksDir, name, diskFile))
	}
	return finding.Invalidf("disk %q: expected a directory that only %s can change, found %s: %s can lead this process to any file through it", name, trustedUsers(), untrusted, untrusted.WhoCanChange())
}

// checkDirMode refuses a directory in which others can create entries, even a sticky one: the
// store's entries may not exist yet.
func checkDirMode(dir, what string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil // the caller's next access reports the error
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

// writable returns the error for a directory of root or this user that others can write to.
func writable(what string, mode uint32) error {
	who := "others"
	if mode&0o002 == 0 {
		who = "its group"
	}
	return finding.Invalidf("%s: expected a directory that others cannot write to, found mode %04o: %s can lead this process to any file through it\nuse a directory of its own, that nobody else can write to",
		what, mode, who)
}

// untrustedStore returns the error for an untrusted path to the store in dir.
func untrustedStore(dir string, untrusted *way.Untrusted) error {
	foreignOwner := !way.Trusted(untrusted.UID)
	name := way.UserName(untrusted.UID)
	switch {
	case untrusted.End && !foreignOwner:
		return writable("store "+dir, untrusted.Mode)
	case untrusted.End && os.Geteuid() == 0:
		return finding.Invalidf(
			"store %s: expected one of root's, found one of user %s, who can lead root to any file through it\nrun cowblk as that user: sudo -u %s cowblk ...", dir, name, sudoName(untrusted.UID))
	case untrusted.End:
		return finding.Invalidf(
			"store %s: expected one that only %s can change, found one of user %s, who can lead this process to any file through it\nuse a store of your own", dir, trustedUsers(), name)
	}
	err := finding.Invalidf("store %s: expected a way to it that only %s can change, found %s: %s can put another store in its place", dir, trustedUsers(), untrusted, untrusted.WhoCanChange())
	elsewhere := "put the store elsewhere, as into a directory that only " + trustedUsers() +
		" can change"
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w\n%s", err, elsewhere)
	}
	asUser := func(uid uint32) string {
		return "run cowblk as that user: sudo -u " + sudoName(uid) + " cowblk ..."
	}
	var st unix.Stat_t
	switch {
	case unix.Stat(dir, &st) == nil && !way.Trusted(st.Uid):
		return fmt.Errorf("%w\nit is a store of user %s; %s\nor %s", err, way.UserName(st.Uid),
			asUser(st.Uid), elsewhere)
	case foreignOwner:
		elsewhere += "; if it is a store of that user, " + asUser(untrusted.UID)
	}
	return fmt.Errorf("%w\n%s", err, elsewhere)
}

// sudoName returns a user as sudo(8) takes it, quoted for a shell.
func sudoName(uid uint32) string {
	name := way.UserName(uid)
	if name == strconv.FormatUint(uint64(uid), 10) {
		name = "#" + name
	}
	return shell.Word(name)
}

// trustedUsers names the users that this process trusts: "root", "root and alice".
func trustedUsers() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return "root and " + way.UserName(uint32(os.Geteuid()))
}

// CheckRunDir refuses a RunDir in which another user could replace this user's sockets. A missing
// one is accepted. It is an ErrInvalid.
func (s *Store) CheckRunDir() error { return s.trustedRunDir(s.runDir, true) }

// trustedRunDir is CheckRunDir for any directory of sockets. restrictable: accept a directory of
// this user or root whose mode will be restricted.
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
		// In a sticky directory others can take the names of sockets.
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
	err = finding.Invalidf("run directory %s: expected one that only %s can change, found %s: %s can put a socket in the place of one there", dir, trustedUsers(), untrusted, untrusted.WhoCanChange())
	if from := s.getenv(runtimeEnv); filepath.IsAbs(from) && within(from, dir) {
		return fmt.Errorf("%w\n%s is %s: set it to a directory of your own that nobody else can write to, as logging in does", err, runtimeEnv, shell.Word(from))
	}
	return fmt.Errorf("%w\nuse a store in a directory that only %s can change, or give this one back to its owner", err, trustedUsers())
}

// maxLinks is the maximum number of symbolic links that are followed from one to the next.
const maxLinks = 40

// refuseDangling refuses a missing directory on whose path a symbolic link leads nowhere: its
// target may be a file system that is not mounted, and a directory cannot be created through it. A
// link that another user could have put there is left to Trusted. It is an ErrInvalid.
func refuseDangling(fsys vfs.FS, dir string) error {
	if _, real := fsys.(vfs.HostFS); !real {
		return nil
	}
	if untrusted, _ := way.Check(dir, pathOptions()); untrusted != nil {
		return nil
	}
	for path := dir; path != filepath.Dir(path); path = filepath.Dir(path) {
		fi, err := os.Lstat(path)
		if err != nil {
			continue
		}
		if fi.Mode().Type() != os.ModeSymlink {
			return nil
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			return nil
		}
		target := linkTarget(path)
		return finding.Invalidf(
			"store %s: expected a directory, found the symbolic link %s, which leads nowhere: %s does not exist\nif a file system there is not mounted, mount it; else make the directory: mkdir -p %s",
			shell.Text(dir), shell.Text(path), shell.Text(target), shell.Path(target))
	}
	return nil
}

// linkTarget returns the first path on a chain of symbolic links that is not a link.
func linkTarget(path string) string {
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			// The directory may be behind links too: ".." is relative to where they lead.
			above, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				above = filepath.Dir(path)
			}
			to = filepath.Join(above, to)
		}
		path = to
	}
	return path
}
