package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/strictjson"
	"cowblk/cow/vfs"
)

// maxDocument limits the size of the store's JSON files, in bytes: a manifest of 65,535 layers has
// 20 MiB.
const maxDocument = 64 << 20

// versionOfDocument is the What of a document of another version, which is not damaged.
const versionOfDocument = "version"

// readDocument decodes and checks one of the store's versioned JSON files. It refuses unknown
// members: their writer knew something about the disk that this program does not.
func (s *Store) readDocument(path string, v any, check func() error) error {
	data, err := s.readBounded(path)
	if err != nil {
		return err
	}
	return decodeDocument(path, data, v, check)
}

func decodeDocument(path string, data []byte, v any, check func() error) error {
	refuse := func(what string, err error) error {
		return &finding.Finding{File: path, What: what, Expected: "a document of version " +
			strconv.Itoa(formatVersion), Found: err.Error(), Cause: err,
			Advice: "restore the file from a backup, or use a newer cowblk if one wrote it"}
	}
	if version, ok := strictjson.Number(data, "version"); ok && version != formatVersion {
		return refuse(versionOfDocument, fmt.Errorf("version %d", version))
	}
	if err := strictjson.Decode(data, v, strictjson.Options{}); err != nil {
		return refuse("content", err)
	}
	if err := check(); err != nil {
		return refuse("content", err)
	}
	return nil
}

// readJSON decodes a file without a version; false: it is missing.
func (s *Store) readJSON(path string, v any) (bool, error) {
	data, err := s.readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = strictjson.Decode(data, v, strictjson.Options{})
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return true, nil
}

// readBounded reads a file of at most maxDocument bytes.
func (s *Store) readBounded(path string) ([]byte, error) {
	return s.readBoundedAs(path, os.O_RDONLY)
}

// readBoundedAs is readBounded with the flags of the open.
func (s *Store) readBoundedAs(path string, flag int) ([]byte, error) {
	f, err := s.fs.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxDocument {
		return nil, refused(path, "size of the document", "at most "+finding.Bytes(maxDocument),
			finding.Bytes(size), "restore the file from a backup")
	}
	data := make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data[:n], nil
}

// decodeServing decodes the content of a lock file and ignores unknown members.
func decodeServing(data []byte) (Serving, error) {
	var v Serving
	err := strictjson.Decode(data, &v, strictjson.Options{IgnoreUnknown: true})
	if err == nil && v.PID <= 0 {
		err = fmt.Errorf("pid: expected that of a process, found %d", v.PID)
	}
	if err != nil {
		return Serving{}, err
	}
	return v, nil
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
		s.command("promote", other.found, "--tag", "TAG"), s.command("create", "NEW", "--from",
			other.found+"@TAG"))
	return err
}

// Files of cowblk that it deletes or overwrites by name are recognized by their content: another
// program, or a user, may have a file of the same name.

// errForeign is for a file that cowblk has not made.
var errForeign = errors.New("expected a file of cowblk, found one with other content")

// beginOf returns at most the first n bytes of a regular file; errForeign: it is of another type.
func (s *Store) beginOf(path string, n int) ([]byte, error) {
	f, err := s.openOwn(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text := make([]byte, n)
	n, err = f.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return text[:n], nil
}

// openOwn opens a regular file for reading. It follows no symbolic link; errForeign.
func (s *Store) openOwn(path string) (vfs.File, error) {
	f, err := s.fs.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s: %w", shell.Text(path), errForeign)
	}
	if err != nil {
		return nil, err
	}
	if st, err := s.fs.Stat(path); err == nil && !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: %w", shell.Text(path), errForeign)
	}
	return f, nil
}
