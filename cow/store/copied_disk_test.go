package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A directory of a disk that was copied or renamed by hand is reported, with a way to continue that
// loses nothing.
func TestCopiedByHand(t *testing.T) {
	s := newStore(t)
	must(t, errOf(s.Create(t.Context(), "a", CreateOptions{Size: 1 << 20})))
	disks := filepath.Join(s.Dir(), "disks")
	must(t, os.CopyFS(filepath.Join(disks, "b"), os.DirFS(filepath.Join(disks, "a"))))
	says := func(what string) {
		t.Helper()
		_, err := s.Disk("b")
		r, cerr := s.Check(t.Context(), CheckOptions{Names: []string{"b"}})
		if cerr != nil || len(r.Reports) != 1 || len(r.Reports[0].Problems) == 0 {
			t.Fatalf("%+v, %v", r, cerr)
		}
		for _, text := range []string{err.Error(), r.Reports[0].Problems[0].Advice} {
			if !strings.Contains(text, what) || strings.Contains(text, "newer cowblk") {
				t.Errorf("%s, want %q", text, what)
			}
		}
	}
	says("copied by hand")
	must(t, os.Rename(filepath.Join(disks, "a"), filepath.Join(t.TempDir(), "a")))
	says(`set its name to "b" in `)
	path := filepath.Join(disks, "b", "disk.json")
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte(strings.Replace(string(text), `"name": "a"`, `"name": "b"`, 1)), 0o600))
	if m, err := s.Disk("b"); err != nil || m.Name != "b" {
		t.Errorf("as advised: %v", err)
	}
}
