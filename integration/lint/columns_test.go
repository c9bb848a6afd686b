package lint

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// narrow are the directories whose product files keep to the limit. The others are to follow.
var narrow = []string{
	"backend/control", "backend/loglimit", "backend/nbd", "backend/qmp", "backend/qmp/link",
	"backend/sandbox", "backend/takeover",
}

// Code and comments have at most 100 columns; a tab of the indentation counts as four.
func TestColumns(t *testing.T) {
	for _, dir := range narrow {
		files, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no Go files: %v", dir, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for n, line := range strings.Split(string(text), "\n") {
				tabs := len(line) - len(strings.TrimLeft(line, "\t"))
				if c := len([]rune(line)) + 3*tabs; c > 100 {
					t.Errorf("%s:%d: %d columns", name, n+1, c)
				}
			}
		}
	}
}
