package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrSymlink says that the way to a socket leads through a symbolic link that another
// user can change.
var ErrSymlink = errors.New("symbolic link in a directory that another user can change")

// maxLinks bounds the symbolic links on the way to one directory, as the kernel does.
const maxLinks = 40

// dirEntry is a name in a directory that is held open. Every operation on a socket's file
// goes through it: what others do to the path meanwhile leads no operation elsewhere.
type dirEntry struct {
	path string // absolute
	name string // its last element
	dir  *os.File
	// private: nobody but root and this user can change the way to the directory, or
	// an entry of this user in it.
	private bool
}

// openDirEntry opens the directory of path. Symbolic links on the way are followed only
// where nobody but root and this user can have put them there.
func openDirEntry(path string) (*dirEntry, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	if name == string(filepath.Separator) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EISDIR}
	}
	w := walker{path: filepath.Dir(path), private: true}
	dir, err := w.walk()
	if err != nil {
		return nil, err
	}
	return &dirEntry{path: path, name: name, dir: dir, private: w.private}, nil
}

// walker goes from the root to a directory, one element at a time.
type walker struct {
	path    string // absolute
	dir     *os.File
	rest    []string
	links   int
	private bool // so far; see place
}

func (w *walker) walk() (dir *os.File, err error) {
	w.rest = elements(w.path)
	if err := w.enter(unix.AT_FDCWD, "/"); err != nil {
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
	var st unix.Stat_t
	if err := unix.Fstat(int(w.dir.Fd()), &st); err != nil {
		return nil, w.pathError(err)
	}
	w.private = w.private && private(&st)
	return w.dir, nil
}

// step goes on to the next element, or puts a symbolic link's content in its place.
func (w *walker) step() error {
	name := w.rest[0]
	var dir, st unix.Stat_t
	if err := unix.Fstat(int(w.dir.Fd()), &dir); err != nil {
		return w.pathError(err)
	}
	w.private = w.private && private(&dir)
	if err := unix.Fstatat(int(w.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return w.pathError(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		w.rest = w.rest[1:]
		return w.enter(int(w.dir.Fd()), name)
	}
	// In a directory such as /tmp everybody makes entries, and each their own.
	if !w.private || !trusted(st.Uid) {
		return fmt.Errorf("%s: %q is a %w: name the directory that is meant", w.path, name, ErrSymlink)
	}
	if w.links++; w.links > maxLinks {
		return w.pathError(unix.ELOOP)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(w.dir.Fd()), name, buf)
	if err != nil {
		return w.pathError(err)
	}
	target := string(buf[:n])
	w.rest = append(elements(target), w.rest[1:]...)
	if filepath.IsAbs(target) {
		return w.enter(unix.AT_FDCWD, "/")
	}
	return nil
}

// enter makes the directory name of at the present one.
func (w *walker) enter(at int, name string) error {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.pathError(err)
	}
	if w.dir != nil {
		w.dir.Close()
	}
	w.dir = os.NewFile(uintptr(fd), w.path)
	return nil
}

func (w *walker) pathError(err error) error {
	return &fs.PathError{Op: "open", Path: w.path, Err: err}
}

// elements are the parts of a path. ".." is kept: behind a symbolic link it is not the
// element before.
func elements(path string) (list []string) {
	for _, e := range strings.Split(path, "/") {
		if e != "" && e != "." {
			list = append(list, e)
		}
	}
	return list
}

func trusted(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// private reports whether only root and this user can replace entries of theirs in a
// directory: others may make entries of their own in a sticky one.
func private(dir *unix.Stat_t) bool {
	return trusted(dir.Uid) && (dir.Mode&0o022 == 0 || dir.Mode&unix.S_ISVTX != 0)
}

func (p *dirEntry) fd() int { return int(p.dir.Fd()) }

// procPath is a path of the file name in the directory that depends on nothing outside
// of this process.
func procPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// file opens the file itself, whatever it is, for nothing but to be named by its descriptor.
func (p *dirEntry) file() (*os.File, error) { return openEntry(p.dir, p.name, p.path) }

func openEntry(dir *os.File, name, path string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// identity is which file lies at the place; false: none, or not a socket.
func (p *dirEntry) identity() (dev, ino uint64, ok bool) {
	var st unix.Stat_t
	err := unix.Fstatat(p.fd(), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st.Dev, st.Ino, err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// remove removes the file at the place if it is the one meant.
func (p *dirEntry) remove(dev, ino uint64) error {
	if d, i, ok := p.identity(); !ok || d != dev || i != ino {
		return nil
	}
	if err := unix.Unlinkat(p.fd(), p.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: p.path, Err: err}
	}
	return nil
}

// privateDir is a directory of this user's own inside a place's directory: nobody else can
// reach what is made in it before it is moved to the place.
type privateDir struct {
	entry *dirEntry
	name  string
	dir   *os.File
}

func (p *dirEntry) newPrivateDir() (*privateDir, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	d := &privateDir{entry: p, name: ".cowblk-" + hex.EncodeToString(id[:])}
	if err := unix.Mkdirat(p.fd(), d.name, 0o700); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Dir(p.path), Err: err}
	}
	var err error
	if d.dir, err = openEntry(p.dir, d.name, p.path); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(d.dir.Fd()), &st); err == nil &&
		(st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = errors.New("another user replaces what this process makes there: choose another directory")
	}
	if err == nil {
		err = chmod(d.dir, 0o700) // whatever the umask
	}
	if err != nil {
		d.dir.Close() // and no more: it may not be the one that was made
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Dir(p.path), Err: err}
	}
	return d, nil
}

// moveOut gives the file name of the drawer the place's name, which must be free.
func (d *privateDir) moveOut(name string) error {
	from, to := int(d.dir.Fd()), d.entry.fd()
	err := unix.Renameat2(from, name, to, d.entry.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not every file system can
		if err = unix.Linkat(from, name, to, d.entry.name, 0); err == nil {
			err = unix.Unlinkat(from, name, 0)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "rename", Path: d.entry.path, Err: err}
	}
	return nil
}

// close removes the drawer, and what has not been moved out of it.
func (d *privateDir) close() {
	_ = unix.Unlinkat(int(d.dir.Fd()), privateDirSocket, 0)
	_ = unix.Unlinkat(d.entry.fd(), d.name, unix.AT_REMOVEDIR)
	d.dir.Close()
}

// chmod changes the mode of a file that was opened with O_PATH, and of no other.
func chmod(f *os.File, mode uint32) error {
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mode)
}
