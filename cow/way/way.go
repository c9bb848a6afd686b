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

// maxLinks limits the symbolic links on one path, as the kernel does.
const maxLinks = 40

// ErrSymlink says that the path leads through a symbolic link that another user can change.
var ErrSymlink = errors.New("symbolic link in a directory that another user can change")

// Options for Open and Check; the zero value trusts root and this user only.
type Options struct {
	// Group trusts the group of a directory that its group can write to.
	Group bool
}

// Untrusted is a directory of a path in which another user can replace entries of root or this
// user.
type Untrusted struct {
	Dir      string // absolute, without symbolic links
	UID, GID uint32 // its owner and group
	Mode     uint32 // permission, set-ID and sticky bits, as in chmod(1)
	// Link is a symbolic link of user LinkUID in Dir, which is sticky; empty: Dir itself is
	// untrusted.
	Link    string
	LinkUID uint32
	// End: Dir is the end of the path.
	End bool
}

// String returns the description: "directory /srv (user bob, group kvm, mode 2775)".
func (w *Untrusted) String() string {
	text := fmt.Sprintf("directory %s (user %s, group %s, mode %04o)", printable(w.Dir),
		UserName(w.UID), groupName(w.GID), w.Mode)
	if w.Link != "" {
		text = fmt.Sprintf("symbolic link %s of user %s in %s", printable(w.Link),
			UserName(w.LinkUID), text)
	}
	return text
}

// printable returns a path for a message, quoted if it holds unprintable characters.
func printable(path string) string {
	if shell.Shown(path) {
		return path
	}
	return strconv.Quote(path)
}

// WhoCanChange names the users who can change it: "user bob", "all users", "the members of group
// kvm".
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

// Open opens a directory (O_PATH) by its absolute path. It follows only symbolic links that root or
// this user created (ErrSymlink). untrusted is the first directory of the path that others can
// change; nil: none. Errors: ErrSymlink, and those of open.
func Open(dir string, o Options) (f *os.File, untrusted *Untrusted, err error) {
	w := walker{target: dir, options: o}
	if f, err = w.walk(); err != nil {
		return nil, w.untrusted, err
	}
	return f, w.untrusted, nil
}

// Check returns the first directory of the path that others can change. If the directory does not
// exist, Check examines the existing part of the path; the error is an fs.ErrNotExist. There is no
// error with an untrusted path.
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

// CheckFile is Check for the path of a file of any type, such as a device: it returns the first
// directory in which another user can replace the file, a directory above it, or a symbolic link on
// the path. The file itself may belong to another user, except in a sticky directory, where its
// owner can replace it. A missing file is an fs.ErrNotExist.
func CheckFile(path string, o Options) (*Untrusted, error) {
	w := walker{target: path, options: o, file: true}
	f, err := w.walk()
	if err == nil {
		f.Close()
	}
	if w.untrusted != nil {
		return w.untrusted, nil
	}
	return nil, err
}

// walker resolves the path of a directory.
type walker struct {
	target    string // absolute
	options   Options
	file      bool // the last element may be a file; dir ends as its directory then
	dir       *os.File
	path      string // of dir, without symbolic links
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

// checkDir checks the current directory.
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

// step resolves the next element, or replaces a symbolic link by its target.
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
		if w.file && len(w.rest) == 0 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if w.untrusted == nil && dir.Mode&0o022 != 0 && !Trusted(st.Uid) {
				w.untrusted = w.untrustedDir(dir)
			}
			return nil
		}
		return w.enter(at, name, unix.O_NOFOLLOW)
	}
	// In a directory such as /tmp any user can create a link.
	if w.untrusted == nil && dir.Mode&0o022 != 0 && !Trusted(st.Uid) {
		w.untrusted = w.untrustedDir(dir)
		w.untrusted.Link, w.untrusted.LinkUID = filepath.Join(w.path, name), st.Uid
	}
	if w.untrusted != nil {
		return fmt.Errorf("%s: %q is a %w: name the directory that is meant", w.target, name,
			ErrSymlink)
	}
	if w.links++; w.links > maxLinks {
		return w.pathError(unix.ELOOP)
	}
	var system unix.Statfs_t
	if err := unix.Fstatfs(at, &system); err == nil && system.Type == unix.PROC_SUPER_MAGIC {
		// Links there lead to open files and other roots; their text is not a path of this process.
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

// enter opens the directory name in at as the current one.
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

// elements splits a path. It keeps "..": after a symbolic link it is not the parent of the path.
func elements(path string) (list []string) {
	for _, e := range strings.Split(path, "/") {
		if e != "" && e != "." {
			list = append(list, e)
		}
	}
	return list
}

// onlyTrusted reports whether only root and this user can replace their entries in a directory. In
// a sticky one others may create entries of their own.
func onlyTrusted(dir *unix.Stat_t, o Options) bool {
	others := uint32(0o022)
	if o.Group {
		others = 0o002
	}
	return Trusted(dir.Uid) && (dir.Mode&others == 0 || dir.Mode&unix.S_ISVTX != 0)
}

// Trusted reports whether a user is root or this one. In a user namespace without a number for the
// machine's root, the owner of the root directory counts as root: that user can redirect every
// path.
func Trusted(uid uint32) bool {
	return uid == 0 || int64(uid) == int64(os.Geteuid()) || uid == unmappedRoot()
}

// UserName returns the name of a user, or the number if there is none.
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
