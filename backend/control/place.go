package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"cowblk/cow/way"
)

// ErrSymlink says that the way to a socket leads through a symbolic link that another
// user can change.
var ErrSymlink = way.ErrSymlink

// place is a name in a directory that is held open. Every operation on a socket's file
// goes through it: what others do to the path meanwhile leads no operation elsewhere.
type place struct {
	path string // absolute
	name string // its last element
	dir  *os.File
	// private: nobody but root and this user can change the way to the directory, or
	// an entry of this user in it.
	private bool
}

// openPlace opens the directory of path. Symbolic links on the way are followed only
// where nobody but root and this user can have put them there.
func openPlace(path string) (*place, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	if name == string(filepath.Separator) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.EISDIR}
	}
	dir, weak, err := way.Open(filepath.Dir(path), way.Options{})
	if err != nil {
		return nil, err
	}
	return &place{path: path, name: name, dir: dir, private: weak == nil}, nil
}

func (p *place) fd() int { return int(p.dir.Fd()) }

// through is a path of the file name in the directory that depends on nothing outside
// of this process.
func through(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// file opens the file itself, whatever it is, for nothing but to be named by its descriptor.
func (p *place) file() (*os.File, error) { return openEntry(p.dir, p.name, p.path) }

func openEntry(dir *os.File, name, path string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// identity is which file lies at the place; false: none, or not a socket.
func (p *place) identity() (dev, ino uint64, ok bool) {
	var st unix.Stat_t
	err := unix.Fstatat(p.fd(), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st.Dev, st.Ino, err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// remove removes the file at the place if it is the one meant.
func (p *place) remove(dev, ino uint64) error {
	if d, i, ok := p.identity(); !ok || d != dev || i != ino {
		return nil
	}
	if err := unix.Unlinkat(p.fd(), p.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: p.path, Err: err}
	}
	return nil
}

// drawer is a directory of this user's own inside a place's directory: nobody else can
// reach what is made in it before it is moved to the place.
type drawer struct {
	place *place
	name  string
	dir   *os.File
}

func (p *place) newDrawer() (*drawer, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	d := &drawer{place: p, name: ".cowblk-" + hex.EncodeToString(id[:])}
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
func (d *drawer) moveOut(name string) error {
	from, to := int(d.dir.Fd()), d.place.fd()
	err := unix.Renameat2(from, name, to, d.place.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not every file system can
		if err = unix.Linkat(from, name, to, d.place.name, 0); err == nil {
			err = unix.Unlinkat(from, name, 0)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "rename", Path: d.place.path, Err: err}
	}
	return nil
}

// close removes the drawer, and what has not been moved out of it.
func (d *drawer) close() {
	_ = unix.Unlinkat(int(d.dir.Fd()), drawerSocket, 0)
	_ = unix.Unlinkat(d.place.fd(), d.name, unix.AT_REMOVEDIR)
	d.dir.Close()
}

// chmod changes the mode of a file that was opened with O_PATH, and of no other.
func chmod(f *os.File, mode uint32) error {
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mode)
}
