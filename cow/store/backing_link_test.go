package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// If a symbolic link is a part of a backing file's path, image.json shows the file that was opened.
func TestBackingByASymbolicLink(t *testing.T) {
	s := newStore(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	secret := filepath.Join(dir, "private", "secret")
	must(t, os.Mkdir(filepath.Dir(secret), 0o700))
	write(t, secret, noise(1, 1<<20))
	for link, to := range map[string]string{"link": secret, "linked": "private", "twice": "link"} {
		must(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	for i, name := range []string{"link", "linked/secret", "twice"} {
		top := overlay(t, filepath.Join(dir, fmt.Sprint("top", i)), filepath.Join(dir, name), "raw")
		_, err := s.Import(context.Background(), top, "img", ImportOptions{})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), secret+" (raw)") {
			t.Errorf("%s, without leave: %v", name, err)
		}
		img, err := s.Import(context.Background(), top, fmt.Sprint("img", i), ImportOptions{Backing: true})
		must(t, err)
		if got := fmt.Sprint(img.Backing); got != "["+secret+" (raw)]" {
			t.Errorf("%s: recorded %s", name, got)
		}
	}
}
