package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pathsOf are the paths that a message about err may hold as they are: of the store, of the errors of the operating
// system in it.
func (a *app) pathsOf(err error) []string {
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

// oneLinePaths escapes the ends of lines in paths, wherever text has them: whoever has made a directory does not write a
// line under cowblk's name. What printable escapes is left to it.
func oneLinePaths(text string, paths []string) string {
	for _, path := range paths {
		if strings.Contains(path, "\n") {
			quoted := strconv.Quote(path)
			text = strings.ReplaceAll(text, path, quoted[1:len(quoted)-1])
		}
	}
	return text
}
