package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"unicode/utf8"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

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
