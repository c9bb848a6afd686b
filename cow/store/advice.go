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

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// command is a command line that an error advises: the program, on this store, with words quoted for a shell.
func (s *Store) command(words ...string) string {
	return s.program + " " + shell.Line(words...)
}

// listText writes a list for a person.
func listText(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// PathText is a path for a message: as it is, or quoted where it holds what cannot be printed.
func PathText(path string) string {
	if shell.Shown(path) {
		return path
	}
	return strconv.Quote(path)
}

// pathError is an error of the operating system's whose path can be shown.
func pathError(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) && PathText(p.Path) != p.Path {
		return &fs.PathError{Op: p.Op, Path: PathText(p.Path), Err: p.Err}
	}
	return err
}

// refusedFile makes an ErrRefused of a file that cannot hold an image; other errors stay.
func refusedFile(what, path string, err error) error {
	var kind *vfs.KindError
	if errors.As(err, &kind) {
		return &Mismatch{File: path, What: what, Expected: "a regular file or a block device", Found: kind.Found, Advice: "name the file or device that holds the disk image"}
	}
	return fmt.Errorf("%s: %w", what, pathError(err))
}

// checkPathText refuses a path that a JSON document cannot hold: it would be another one when it is read again.
func checkPathText(what, path string) error {
	if utf8.ValidString(path) {
		return nil
	}
	return invalidf("%s %s: expected a name in UTF-8, found other bytes, which the store's JSON documents cannot hold\n"+
		"give it another name, or name it through a symbolic link that has one", what, strconv.Quote(path))
}

// maxFileName is the length limit of a file's name, in bytes (NAME_MAX of Linux's file systems).
const maxFileName = 255

// freshTries bounds the names that freshPath looks at, one after the other.
const freshTries = 1000

// unusedPath is the path of a new file beside path, for a command that an error advises: the command may be pasted, and
// would overwrite without a question what has the name. suffix and ext are what tells it from path, such as ".new" and
// ".qcow2"; ".new-2.qcow2" if that is taken, and so on. A name that would be too long for a file system is shortened.
func unusedPath(fsys vfs.FS, path, suffix, ext string) string {
	for n := 1; n <= freshTries; n++ {
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

// withSuffix is path with end added to its name, the name cut if both are too long, between characters.
func withSuffix(path, end string) string {
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
	return "qemu-img convert -O qcow2 " + shell.Path(top) + " " + shell.Path(unusedPath(fsys, top, ".new", ".qcow2"))
}

// nameError: a document has another name than its directory, which somebody has copied or renamed by hand.
type nameError struct{ expected, found string }

func (e *nameError) Error() string {
	return fmt.Sprintf("name: expected %q, found %q", e.expected, e.found)
}

// adviseName gives the refusal of a document for its name the way on. A second manifest with the layers of a disk that is
// there is no disk: two heads cannot be one file. What is alone was renamed. An image has its content beside it.
func (s *Store) adviseName(kind, path string, err error) error {
	var m *Mismatch
	var other *nameError
	if !errors.As(err, &m) || !errors.As(m.cause, &other) {
		return err
	}
	rename := fmt.Sprintf("set its name to %q in %s", other.expected, shell.Path(path))
	m.Advice = fmt.Sprintf("this is the document of %s %q. If the directory was renamed by hand: %s", kind, other.found, rename)
	if kind != "disk" || CheckName("disk", other.found) != nil {
		return err
	}
	if there, serr := s.exists(s.path(disksDir, other.found)); serr == nil && !there {
		return err
	}
	m.Advice = fmt.Sprintf("this is the manifest of disk %[1]q, copied by hand: it names that disk's layers, which no other disk can write to. It has none of its own: "+
		"move the directory out of the store\nfor another disk with the same content: %[2]s, then %[3]s", other.found,
		s.command("promote", other.found, "--tag", "TAG"), s.command("create", "NEW", "--from", other.found+"@TAG"))
	return err
}
