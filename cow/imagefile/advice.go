package imagefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// pathError is an error of the operating system whose path is printable.
func pathError(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && shell.Text(p.Path) != p.Path {
		return &fs.PathError{Op: p.Op, Path: shell.Text(p.Path), Err: p.Err}
	}
	return err
}

// Refused turns the error of a file that cannot hold an image into an ErrRefused; it returns
// other errors as they are.
func Refused(what, path string, err error) error {
	var kind *vfs.KindError
	if errors.As(err, &kind) {
		return finding.New(nil, path, what, "a regular file or a block device", kind.Found,
			"name the file or device that holds the disk image")
	}
	return fmt.Errorf("%s: %w", what, pathError(err))
}

// maxFileName is the length limit of a file name, in bytes (NAME_MAX of Linux's file systems).
const maxFileName = 255

// maxUnusedPathTries limits the names that unusedPath tries.
const maxUnusedPathTries = 1000

// unusedPath returns the path of a new file beside path, for a command in an error's advice: a user
// may paste the command, and it would overwrite an existing file. The name ends in suffix and ext,
// such as ".new" and ".qcow2"; if that file exists, in ".new-2.qcow2" and so on. It is cut to the
// length limit of file names.
func unusedPath(fsys vfs.FS, path, suffix, ext string) string {
	for n := 1; n <= maxUnusedPathTries; n++ {
		end := suffix + ext
		if n > 1 {
			end = fmt.Sprintf("%s-%d%s", suffix, n, ext)
		}
		if fresh := withSuffix(path, end); !taken(fsys, fresh) {
			return fresh
		}
	}
	return withSuffix(path, suffix+"-"+uuid.NewString()+ext)
}

// withSuffix appends end to path. It cuts the name between characters if the result would be too
// long.
func withSuffix(path, end string) string {
	dir, name := filepath.Split(path)
	if maxLen := maxFileName - len(end); len(name) > maxLen {
		for maxLen > 0 && !utf8.RuneStart(name[maxLen]) {
			maxLen--
		}
		name = name[:maxLen]
	}
	return dir + name + end
}

// taken reports whether a name is in use. A dangling symbolic link uses its name: a write through
// it creates a file elsewhere.
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

// flatten returns the command that converts an image and its backing files to one new qcow2. It
// names the top image: a conversion of a file below would lack the content above it.
func flatten(fsys vfs.FS, top string) string {
	return "qemu-img convert -O qcow2 " + shell.Path(top) + " " + shell.Path(unusedPath(fsys, top,
		".new", ".qcow2"))
}
