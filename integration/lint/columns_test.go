package lint

import (
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	columns = 100
	// A string of more columns may make its line longer: texts are not cut, so that a search for
	// one finds it.
	longString = 40
)

// Code and comments have at most 100 columns; a tab of the indentation counts as four. Lines of raw
// strings and tables in comments may have more, and lines with a long string.
func TestColumns(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files", "*.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(out))
	if len(names) < 100 {
		t.Fatalf("git lists %d files only", len(names))
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		exempt := longStrings(text)
		for n, line := range strings.Split(string(text), "\n") {
			tabs := len(line) - len(strings.TrimLeft(line, "\t"))
			if c := len([]rune(line)) + 3*tabs; c > columns && !exempt[n+1] &&
				!strings.HasPrefix(line, "//\t") {
				t.Errorf("%s:%d: %d columns", name, n+1, c)
			}
		}
	}
}

// A file has at most 500 lines: one that grows further has more than one subject.
func TestFilesAreShort(t *testing.T) {
	const most = 500
	out, err := exec.Command("git", "-C", "../..", "ls-files", "*.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n > most {
			t.Errorf("%s: %d lines, at most %d are expected", name, n, most)
		}
	}
}

// longStrings returns the lines of a Go source, from 1 on, that have a long or raw string.
func longStrings(text []byte) map[int]bool {
	file := token.NewFileSet().AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, text, nil, 0)
	lines := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		switch {
		case tok == token.EOF:
			return lines
		case tok == token.STRING && (lit[0] == '`' || len(lit) > longString):
			first := file.Line(pos)
			for n := range strings.Count(lit, "\n") + 1 {
				lines[first+n] = true
			}
		}
	}
}
