package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// command returns a command line for an error's advice: the program on this store, with words
// quoted for a shell.
func (s *Store) command(words ...string) string {
	return s.program + " " + shell.Line(words...)
}

// listText joins a list for a message.
func listText(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// pathError is an error of the operating system whose path is printable.
func pathError(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && shell.Text(p.Path) != p.Path {
		return &fs.PathError{Op: p.Op, Path: shell.Text(p.Path), Err: p.Err}
	}
	return err
}

// refusedFile turns the error of a file that cannot hold an image into an ErrRefused; it returns
// other errors as they are.
func refusedFile(what, path string, err error) error {
	var kind *vfs.KindError
	if errors.As(err, &kind) {
		return refused(path, what, "a regular file or a block device", kind.Found,
			"name the file or device that holds the disk image")
	}
	return fmt.Errorf("%s: %w", what, pathError(err))
}

// checkPathText refuses a path that JSON cannot represent: it would read back as another path.
func checkPathText(what, path string) error {
	if utf8.ValidString(path) {
		return nil
	}
	return invalidf("%s %s: expected a name in UTF-8, found other bytes, which the store's JSON documents cannot hold\n"+
		"give it another name, or name it through a symbolic link that has one", what, strconv.Quote(path))
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
	return "qemu-img convert -O qcow2 " + shell.Path(top) + " " + shell.Path(unusedPath(fsys, top, ".new", ".qcow2"))
}

// nameError says that the name in a document differs from the name of its directory: somebody
// copied or renamed the directory by hand.
type nameError struct{ expected, found string }

func (e *nameError) Error() string {
	return fmt.Sprintf("name: expected %q, found %q", e.expected, e.found)
}

// adviseName adds advice to a refusal because of a document's name. If the disk of that name
// exists, the directory is a copy, and two disks cannot write one head. Otherwise the directory was
// renamed. An image has its content beside the document.
func (s *Store) adviseName(kind, path string, err error) error {
	var m *finding.Finding
	var other *nameError
	if !errors.As(err, &m) || !errors.As(err, &other) {
		return err
	}
	rename := fmt.Sprintf("set its name to %q in %s", other.expected, shell.Path(path))
	m.Advice = fmt.Sprintf("this is the document of %s %q. If the directory was renamed by hand: %s", kind, other.found, rename)
	if kind != "disk" || CheckName("disk", other.found) != nil {
		return err
	}
	if exists, serr := s.exists(s.path(disksDir, other.found)); serr == nil && !exists {
		return err
	}
	m.Advice = fmt.Sprintf("this is the manifest of disk %[1]q, copied by hand: it names that disk's layers, which no other disk can write to. It has none of its own: "+
		"move the directory out of the store\nfor another disk with the same content: %[2]s, then %[3]s", other.found,
		s.command("promote", other.found, "--tag", "TAG"), s.command("create", "NEW", "--from", other.found+"@TAG"))
	return err
}
