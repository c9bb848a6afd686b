package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A store behind a symbolic link that leads nowhere is refused, and the directory that is missing is
// named. Once it is there, the store is made in it.
func TestStoreBehindDanglingLink(t *testing.T) {
	for name, c := range map[string]struct{ links, store, missing string }{
		"absolute":       {"l=$/srv/cowblk", "l", "srv/cowblk"},
		"relative":       {"a/l=../srv/cowblk", "a/l", "srv/cowblk"},
		"with a blank":   {"l=my srv", "l", "my srv"},
		"on the way":     {"l=srv", "l/vm/store", "srv"},
		"two links":      {"l=m m=srv", "l", "srv"},
		"a relative dir": {"d=a/b a/b/l=../srv", "d/l", "a/srv"},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			must(t, os.MkdirAll(filepath.Join(top, "a", "b"), 0o755))
			links := strings.Fields(c.links)
			if name == "with a blank" {
				links = []string{c.links}
			}
			for _, link := range links {
				from, to, _ := strings.Cut(link, "=")
				must(t, os.Symlink(strings.Replace(to, "$", top, 1), filepath.Join(top, from)))
			}
			missing := filepath.Join(top, c.missing)
			quoted := missing
			if strings.Contains(missing, " ") {
				quoted = "'" + missing + "'"
			}
			_, err := Open(filepath.Join(top, c.store), Options{})
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "leads nowhere") || !strings.HasSuffix(err.Error(), "mkdir -p "+quoted) {
				t.Fatalf("%v", err)
			}
			must(t, os.MkdirAll(missing, 0o755))
			create(t, openStore(t, filepath.Join(top, c.store)), "vm1", CreateOptions{Size: 1 << 20})
		})
	}
}
