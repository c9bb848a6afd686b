package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/google/uuid"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// maxFileName is the length limit of a file's name, in bytes (NAME_MAX of Linux's file systems).
const maxFileName = 255

// freshTries bounds the names that freshPath looks at, one after the other.
const freshTries = 1000

// freshPath is the path of a new file beside path, for a command that an error advises: the command may be pasted, and
// would overwrite without a question what has the name. suffix and ext are what tells it from path, such as ".new" and
// ".qcow2"; ".new-2.qcow2" if that is taken, and so on. A name that would be too long for a file system is shortened.
func freshPath(fsys vfs.FS, path, suffix, ext string) string {
	for n := 1; n <= freshTries; n++ {
		end := suffix + ext
		if n > 1 {
			end = fmt.Sprintf("%s-%d%s", suffix, n, ext)
		}
		if fresh := withEnd(path, end); !taken(fsys, fresh) {
			return fresh
		}
	}
	return withEnd(path, suffix+"-"+uuid.NewString()+ext)
}

// withEnd is path with end added to its name, the name cut if both are too long, between characters.
func withEnd(path, end string) string {
	dir, name := filepath.Split(path)
	if cut := maxFileName - len(end); len(name) > cut {
		for cut > 0 && !utf8.RuneStart(name[cut]) {
			cut--
		}
		name = name[:cut]
	}
	return dir + name + end
}

// taken reports whether a file may have the name. A symbolic link that leads nowhere has it: what writes to it makes a
// file elsewhere.
func taken(fsys vfs.FS, path string) bool {
	if _, err := fsys.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if _, real := fsys.(vfs.HostFS); !real {
		return false
	}
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// flatten is the command that makes one new qcow2 of an image and of all that is under it. It names the image that the
// person has named: one made of a file below holds nothing of those above.
func flatten(fsys vfs.FS, top string) string {
	return "qemu-img convert -O qcow2 " + shell.Path(top) + " " + shell.Path(freshPath(fsys, top, ".new", ".qcow2"))
}
