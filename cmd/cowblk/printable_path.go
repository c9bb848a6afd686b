package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pathsInError returns the paths that a message about err may contain unescaped: the path of the
// store and the paths in the errors of the operating system.
func (a *app) pathsInError(err error) []string {
	var paths []string
	if dir, derr := a.dir(); derr == nil {
		paths = append(paths, dir)
		if abs, aerr := filepath.Abs(dir); aerr == nil {
			paths = append(paths, abs)
		}
	}
	var walk func(err error)
	walk = func(err error) {
		switch e := err.(type) {
		case *fs.PathError:
			paths = append(paths, e.Path)
		case *os.LinkError:
			paths = append(paths, e.Old, e.New)
		}
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			if next := e.Unwrap(); next != nil {
				walk(next)
			}
		case interface{ Unwrap() []error }:
			for _, part := range e.Unwrap() {
				walk(part)
			}
		}
	}
	walk(err)
	return paths
}

// escapeLineBreaks escapes line breaks of these paths in text, so that the name of a directory
// cannot forge a line of cowblk's output. printable escapes other characters.
func escapeLineBreaks(text string, paths []string) string {
	for _, path := range paths {
		if strings.Contains(path, "\n") {
			quoted := strconv.Quote(path)
			text = strings.ReplaceAll(text, path, quoted[1:len(quoted)-1])
		}
	}
	return text
}
