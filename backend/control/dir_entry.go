package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"cowblk/cow/way"

	"golang.org/x/sys/unix"
)

// ErrSymlink says that the path of a socket contains a symbolic link that another user can change.
var ErrSymlink = way.ErrSymlink

// dirEntry is a name in a directory that is held open. All operations on a socket's file use it, so
// that concurrent changes of the path by others cannot redirect them.
type dirEntry struct {
	path string // absolute
	name string // last element of path
	dir  *os.File
	// private: only root and this user can change the path to the directory, or this user's entries
	// in it.
	private bool
}

// openDirEntry opens the directory of path. It follows a symbolic link only if nobody but root and
// this user can have created it; otherwise it returns ErrSymlink.
func openDirEntry(path string) (*dirEntry, error) {
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
	return &dirEntry{path: path, name: name, dir: dir, private: weak == nil}, nil
}

func (p *dirEntry) fd() int { return int(p.dir.Fd()) }

// procPath returns a path of name in dir that other processes cannot change.
func procPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// file opens the file, of any type, with O_PATH.
func (p *dirEntry) file() (*os.File, error) { return openEntry(p.dir, p.name, p.path) }

func openEntry(dir *os.File, name, path string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// identity returns device and inode of the socket at the entry; false: there is no file, or it is
// not a socket.
func (p *dirEntry) identity() (dev, ino uint64, ok bool) {
	var st unix.Stat_t
	err := unix.Fstatat(p.fd(), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st.Dev, st.Ino, err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// remove removes the file if it has this device and inode.
func (p *dirEntry) remove(dev, ino uint64) error {
	if d, i, ok := p.identity(); !ok || d != dev || i != ino {
		return nil
	}
	if err := unix.Unlinkat(p.fd(), p.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: p.path, Err: err}
	}
	return nil
}

// privateDir is a temporary directory that only this user can access, inside the directory of an
// entry. A file is created in it and then moved to the entry.
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
		err = errors.New(
			"another user replaces what this process makes there: choose another directory")
	}
	if err == nil {
		err = chmod(d.dir, 0o700) // independent of the umask
	}
	if err != nil {
		d.dir.Close() // do not remove it: another user may have replaced it
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Dir(p.path), Err: err}
	}
	return d, nil
}

// moveOut renames a file of the directory to the entry, which must not exist.
func (d *privateDir) moveOut(name string) error {
	from, to := int(d.dir.Fd()), d.entry.fd()
	err := unix.Renameat2(from, name, to, d.entry.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// Not every file system has the flag.
		if err = unix.Linkat(from, name, to, d.entry.name, 0); err == nil {
			err = unix.Unlinkat(from, name, 0)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "rename", Path: d.entry.path, Err: err}
	}
	return nil
}

// close removes the directory and a socket that is left in it.
func (d *privateDir) close() {
	_ = unix.Unlinkat(int(d.dir.Fd()), privateDirSocket, 0)
	_ = unix.Unlinkat(d.entry.fd(), d.name, unix.AT_REMOVEDIR)
	d.dir.Close()
}

// chmod changes the mode of a file opened with O_PATH, without looking up its path again.
func chmod(f *os.File, mode uint32) error {
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mode)
}
