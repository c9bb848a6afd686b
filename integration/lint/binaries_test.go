package lint

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxTracked bounds a file of the tree, in bytes: what is larger was generated.
const maxTracked = 512 << 10

// No binary, picture or result is in git by accident: not by name, and not by size.
func TestNoGeneratedFiles(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files", "-z").Output()
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if len(names) < 100 {
		t.Fatalf("git lists %d files only", len(names))
	}
	for _, name := range names {
		path := filepath.Join("../..", name)
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() > maxTracked {
			t.Errorf("%s has %d bytes, at most %d are allowed", name, st.Size(), maxTracked)
		}
		head := make([]byte, 4)
		if f, err := os.Open(path); err == nil {
			n, _ := f.Read(head)
			f.Close()
			if string(head[:n]) == "\x7fELF" {
				t.Errorf("%s is a program: it belongs into .gitignore", name)
			}
		}
	}
}
