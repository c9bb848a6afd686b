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

// Weak is a directory on a way, or at its end, in which somebody else can replace what is root's or this user's.
type Weak struct {
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
func (w *Weak) String() string {
	text := fmt.Sprintf("directory %s (user %s, group %s, mode %04o)", shown(w.Dir), UserName(w.UID), groupName(w.GID), w.Mode)
	if w.Link != "" {
		text = fmt.Sprintf("symbolic link %s of user %s in %s", shown(w.Link), UserName(w.LinkUID), text)
	}
	return text
}

// shown is a path for a message: quoted where it holds what cannot be printed.
func shown(path string) string {
	if shell.Shown(path) {
		return path
	}
	return strconv.Quote(path)
}

// Who are the users who can change it, for a person: "user bob", "all users", "the members of group kvm".
func (w *Weak) Who() string {
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
func Open(dir string, o Options) (f *os.File, weak *Weak, err error) {
	w := walker{whole: dir, options: o}
	if f, err = w.walk(); err != nil {
		return nil, w.weak, err
	}
	return f, w.weak, nil
}

// Check says what Open does of a directory. Of one that is not there it is the way to where it would be made, and the
// error an fs.ErrNotExist. A weak way has no error.
func Check(dir string, o Options) (*Weak, error) {
	f, weak, err := Open(dir, o)
	if err == nil {
		f.Close()
	}
	if weak != nil {
		return weak, nil
	}
	return nil, err
}

// walker goes from the root to a directory.
type walker struct {
	whole   string // absolute
	options Options
	at      *os.File
	path    string // of at, without symbolic links
	rest    []string
	links   int
	weak    *Weak
}

func (w *walker) walk() (dir *os.File, err error) {
	w.rest = elements(w.whole)
	if err := w.enter(unix.AT_FDCWD, "/", unix.O_NOFOLLOW); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.at.Close()
		}
	}()
	for len(w.rest) > 0 {
		if err := w.step(); err != nil {
			return nil, err
		}
	}
	before := w.weak
	if _, err = w.look(); w.weak != before {
		w.weak.End = true
	}
	return w.at, err
}

// look judges the present directory.
func (w *walker) look() (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(w.at.Fd()), &st); err != nil {
		return nil, w.failed(err)
	}
	if w.weak == nil && !private(&st, w.options) {
		w.weak = w.weakness(&st)
	}
	return &st, nil
}

func (w *walker) weakness(st *unix.Stat_t) *Weak {
	return &Weak{Dir: w.path, UID: st.Uid, GID: st.Gid, Mode: st.Mode & 0o7777}
}

// step goes on to the next element, or puts a symbolic link's content in its place.
func (w *walker) step() error {
	name := w.rest[0]
	dir, err := w.look()
	if err != nil {
		return err
	}
	at := int(w.at.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return w.failed(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		w.rest = w.rest[1:]
		return w.enter(at, name, unix.O_NOFOLLOW)
	}
	// In a directory such as /tmp everybody makes entries, and each their own.
	if w.weak == nil && dir.Mode&0o022 != 0 && !Trusted(st.Uid) {
		w.weak = w.weakness(dir)
		w.weak.Link, w.weak.LinkUID = filepath.Join(w.path, name), st.Uid
	}
	if w.weak != nil {
		return fmt.Errorf("%s: %q is a %w: name the directory that is meant", w.whole, name, ErrSymlink)
	}
	if w.links++; w.links > maxLinks {
		return w.failed(unix.ELOOP)
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
		return w.failed(err)
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
		return w.failed(err)
	}
	if w.at != nil {
		w.at.Close()
	}
	w.at = os.NewFile(uintptr(fd), w.whole)
	if w.path = filepath.Join(w.path, name); name == "/" {
		w.path = name
	}
	return nil
}

func (w *walker) failed(err error) error {
	return &fs.PathError{Op: "open", Path: w.whole, Err: err}
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

// private reports whether only root and this user can replace entries of theirs in a directory: others may make entries
// of their own in a sticky one.
func private(dir *unix.Stat_t, o Options) bool {
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
