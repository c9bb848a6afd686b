package store

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// rewrite changes a document of the store.
func rewrite(t *testing.T, path, from, to string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), from, to, 1)
	if changed == string(text) {
		t.Fatalf("nothing changed in %s", text)
	}
	write(t, path, []byte(changed))
}

// TestBaseWithoutBytes: a manifest whose base has no bytes, or another number of them than the layers say, is refused
// before a promotion could make a head of it.
func TestBaseWithoutBytes(t *testing.T) {
	ctx := context.Background()
	for _, size := range []string{"0", "-512", "512", "1000", "1048064", "1049088"} {
		s := newStore(t)
		create(t, s, "image", CreateOptions{From: importRaw(t, s, "golden", noise(3, 1<<20)).Name})
		create(t, s, "place", CreateOptions{Base: tempFile(t, "base.raw", noise(3, 1<<20))})
		for _, name := range []string{"image", "place"} {
			path := s.path(disksDir, name, diskFile)
			rewrite(t, path, "\"size\": 1048576,\n    \"fingerprint\"", "\"size\": "+size+",\n    \"fingerprint\"")
			before := snapshot(t, s.dir)
			if o, err := s.OpenDisk(ctx, name, OpenOptions{}); !errors.Is(err, ErrRefused) {
				t.Errorf("%s with a base of %s bytes: open: expected %v, found %v", name, size, ErrRefused, err)
				if err == nil {
					o.Close()
				}
			}
			if _, err := s.Promote(ctx, []string{name}, "t"); !errors.Is(err, ErrRefused) {
				t.Errorf("%s with a base of %s bytes: promote: expected %v, found %v", name, size, ErrRefused, err)
			}
			if r, err := s.Check(ctx, CheckOptions{Names: []string{name}}); err != nil || r.Left() == 0 {
				t.Errorf("%s with a base of %s bytes: check: expected a problem, found %+v, %v", name, size, r, err)
			}
			sameFiles(t, before, snapshot(t, s.dir))
		}
	}
}
