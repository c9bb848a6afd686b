package way

import (
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FileChecker is CheckFile for many files. It keeps the directories of the last path open, so that
// files in the same directories cost a few system calls each. The zero value is CheckFile with zero
// Options. It must be closed, and must not be used concurrently.
type FileChecker struct {
	Options Options

	dirs []openDir // from / on; all are trusted, and none was reached by a symbolic link
}

type openDir struct {
	name string
	fd   int
	mode uint32
}

// CheckFile is the function CheckFile.
func (c *FileChecker) CheckFile(path string) (*Untrusted, error) {
	if plain, err := c.plain(path); plain {
		return nil, err
	}
	return CheckFile(path, c.Options)
}

// plain reports whether no symbolic link is on the path and no other user can change its
// directories; err: the file is missing. It does not say why not.
func (c *FileChecker) plain(path string) (plain bool, err error) {
	if !filepath.IsAbs(path) || path != filepath.Clean(path) || path == "/" {
		return false, nil
	}
	names := strings.Split(path, "/") // the first is empty: the root directory
	dirs, file := names[:len(names)-1], names[len(names)-1]
	same := 0
	for same < min(len(dirs), len(c.dirs)) && dirs[same] == c.dirs[same].name {
		same++
	}
	c.leave(same)
	for _, name := range dirs[same:] {
		if !c.enter(name) {
			return false, nil
		}
	}
	var st unix.Stat_t
	dir := &c.dirs[len(c.dirs)-1]
	switch err := unix.Fstatat(dir.fd, file, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		return true, &fs.PathError{Op: "open", Path: path, Err: err}
	case err != nil, st.Mode&unix.S_IFMT == unix.S_IFLNK, st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return false, nil
	}
	return dir.mode&0o022 == 0 || Trusted(st.Uid), nil
}

// enter opens the directory name in the last one, or the root directory for an empty name.
func (c *FileChecker) enter(name string) bool {
	at, path := unix.AT_FDCWD, "/"
	if name != "" {
		at, path = c.dirs[len(c.dirs)-1].fd, name
	}
	fd, err := unix.Openat(at, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // also for a symbolic link: ENOTDIR
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || !onlyTrusted(&st, c.Options) {
		unix.Close(fd)
		return false
	}
	c.dirs = append(c.dirs, openDir{name: name, fd: fd, mode: st.Mode})
	return true
}

// leave closes all but the first n directories.
func (c *FileChecker) leave(n int) {
	for _, d := range c.dirs[n:] {
		unix.Close(d.fd)
	}
	c.dirs = c.dirs[:n]
}

// Close closes the directories.
func (c *FileChecker) Close() { c.leave(0) }
