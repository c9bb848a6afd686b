// Package way goes to a directory one element at a time, as the kernel does, and says whether anybody but root and this
// user can lead the way elsewhere. What a process checks by a path and opens by the same path afterwards is the same file
// only where nobody else can change what lies between: a directory that holds an element of the path, or a symbolic
// link on it.
package way

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cowblk/cow/shell"
)

// maxLinks bounds the symbolic links on one way, as the kernel does.
const maxLinks = 40

// ErrSymlink says that the way leads through a symbolic link that another user can change.
var ErrSymlink = errors.New("symbolic link in a directory that another user can change")

// Options for Open and Check; the zero value trusts root and this user only.
type Options struct {
	// Group trusts the members of the group of a directory that the group may write to.
	Group bool
}

// Untrusted is a directory on a way, or at its end, in which somebody else can replace what is root's or this user's.
type Untrusted struct {
	Dir      string // absolute, without symbolic links
	UID, GID uint32 // its owner and group
	Mode     uint32 // permission bits with those of set-ID and sticky, as in chmod(1)
	// Link is a symbolic link in Dir, which is sticky, that belongs to LinkUID; empty: Dir itself is at fault.
	Link    string
	LinkUID uint32
	// End: Dir is the directory that was asked for, not one on the way to it.
	End bool
}

// String says what is at fault: "directory /srv (user bob, group kvm, mode 2775)".
func (w *Untrusted) String() string {
	text := fmt.Sprintf("directory %s (user %s, group %s, mode %04o)", printable(w.Dir), UserName(w.UID), groupName(w.GID), w.Mode)
	if w.Link != "" {
		text = fmt.Sprintf("symbolic link %s of user %s in %s", printable(w.Link), UserName(w.LinkUID), text)
	}
	return text
}

// printable is a path for a message: quoted where it holds what cannot be printed.
func printable(path string) string {
	if shell.Shown(path) {
		return path
	}
	return strconv.Quote(path)
}

// WhoCanChange are the users who can change it, for a person: "user bob", "all users", "the members of group kvm".
func (w *Untrusted) WhoCanChange() string {
	switch {
	case w.Link != "":
		return "user " + UserName(w.LinkUID)
	case !Trusted(w.UID):
		return "user " + UserName(w.UID)
	case w.Mode&0o002 != 0:
		return "all users"
	}
	return "the members of group " + groupName(w.GID)
}

// Open opens a directory (O_PATH), whose path is absolute. Symbolic links are followed only where nobody but root and
// this user can have put them there (ErrSymlink), other elements everywhere. weak is the first directory that others can
// change; nil: nobody can. Errors: those of opening the directory; ErrSymlink.
func Open(dir string, o Options) (f *os.File, untrusted *Untrusted, err error) {
	w := walker{target: dir, options: o}
	if f, err = w.walk(); err != nil {
		return nil, w.untrusted, err
	}
	return f, w.untrusted, nil
}

// Check says what Open does of a directory. Of one that is not there it is the way to where it would be made, and the
// error an fs.ErrNotExist. A weak way has no error.
func Check(dir string, o Options) (*Untrusted, error) {
	f, untrusted, err := Open(dir, o)
	if err == nil {
		f.Close()
	}
	if untrusted != nil {
		return untrusted, nil
	}
	return nil, err
}

// walker goes from the root to a directory.
type walker struct {
	target    string // absolute
	options   Options
	dir       *os.File
	path      string // of at, without symbolic links
	rest      []string
	links     int
	untrusted *Untrusted
}

func (w *walker) walk() (dir *os.File, err error) {
	w.rest = elements(w.target)
	if err := w.enter(unix.AT_FDCWD, "/", unix.O_NOFOLLOW); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.dir.Close()
		}
	}()
	for len(w.rest) > 0 {
		if err := w.step(); err != nil {
			return nil, err
		}
	}
	before := w.untrusted
	if _, err = w.checkDir(); w.untrusted != before {
		w.untrusted.End = true
	}
	return w.dir, err
}

// checkDir judges the present directory.
func (w *walker) checkDir() (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.dir.Fd()), &st); err != nil {
		return nil, w.pathError(err)
	}
	if w.untrusted == nil && !onlyTrusted(&st, w.options) {
		w.untrusted = w.untrustedDir(&st)
	}
	return &st, nil
}

func (w *walker) untrustedDir(st *unix.Stat_t) *Untrusted {
	return &Untrusted{Dir: w.path, UID: st.Uid, GID: st.Gid, Mode: st.Mode & 0o7777}
}

// step goes on to the next element, or puts a symbolic link's content in its place.
func (w *walker) step() error {
	name := w.rest[0]
	dir, err := w.checkDir()
	if err != nil {
		return err
	}
	at := int(w.dir.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return w.pathError(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		w.rest = w.rest[1:]
		return w.enter(at, name, unix.O_NOFOLLOW)
	}
	// In a directory such as /tmp everybody makes entries, and each their own.
	if w.untrusted == nil && dir.Mode&0o022 != 0 && !Trusted(st.Uid) {
		w.untrusted = w.untrustedDir(dir)
		w.untrusted.Link, w.untrusted.LinkUID = filepath.Join(w.path, name), st.Uid
	}
	if w.untrusted != nil {
		return fmt.Errorf("%s: %q is a %w: name the directory that is meant", w.target, name, ErrSymlink)
	}
	if w.links++; w.links > maxLinks {
		return w.pathError(unix.ELOOP)
	}
	var system unix.Statfs_t
	if err := unix.Fstatfs(at, &system); err == nil && system.Type == unix.PROC_SUPER_MAGIC {
		// Links there lead to open files and other roots, and their content is no path of this process.
		w.rest = w.rest[1:]
		return w.enter(at, name, 0)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, name, buf)
	if err != nil {
		return w.pathError(err)
	}
	target := string(buf[:n])
	w.rest = append(elements(target), w.rest[1:]...)
	if filepath.IsAbs(target) {
		return w.enter(unix.AT_FDCWD, "/", unix.O_NOFOLLOW)
	}
	return nil
}

// enter makes the directory name of at the present one.
func (w *walker) enter(at int, name string, flags int) error {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return w.pathError(err)
	}
	if w.dir != nil {
		w.dir.Close()
	}
	w.dir = os.NewFile(uintptr(fd), w.target)
	if w.path = filepath.Join(w.path, name); name == "/" {
		w.path = name
	}
	return nil
}

func (w *walker) pathError(err error) error {
	return &fs.PathError{Op: "open", Path: w.target, Err: err}
}

// elements are the parts of a path. ".." is kept: behind a symbolic link it is not the element before.
func elements(path string) (list []string) {
	for _, e := range strings.Split(path, "/") {
		if e != "" && e != "." {
			list = append(list, e)
		}
	}
	return list
}

// onlyTrusted reports whether only root and this user can replace entries of theirs in a directory: others may make entries
// of their own in a sticky one.
func onlyTrusted(dir *unix.Stat_t, o Options) bool {
	others := uint32(0o022)
	if o.Group {
		others = 0o002
	}
	return Trusted(dir.Uid) && (dir.Mode&others == 0 || dir.Mode&unix.S_ISVTX != 0)
}

// Trusted reports whether a user is root or this one. In a user namespace in which the machine's root has no number,
// whoever owns the root directory counts as root: who can change that can lead every path elsewhere.
func Trusted(uid uint32) bool {
	return uid == 0 || int64(uid) == int64(os.Geteuid()) || uid == unmappedRoot()
}

// UserName is the name of a user, or the number of one who has none.
func UserName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}
