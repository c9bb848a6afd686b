package store

import (
	"context"
	"errors"
	"os"
	"testing"
)

// TestSizeOfAnImage: an image whose data differs in length from image.json is refused, whatever the
// identity says. If only the identity is wrong, the content decides.
func TestSizeOfAnImage(t *testing.T) {
	ctx := context.Background()
	const in = "\n  \"size\": 1048576"
	const id = "    \"size\": 1048576"
	for _, c := range []struct {
		what    string
		do      func(s *Store)
		refused bool
	}{
		{"a larger size", func(s *Store) { rewrite(t, s.path(imagesDir, "golden", imageFile), in, "\n  \"size\": 2097152") }, true},
		{"a smaller size", func(s *Store) { rewrite(t, s.path(imagesDir, "golden", imageFile), in, "\n  \"size\": 524288") }, true},
		{"both sizes larger", func(s *Store) {
			rewrite(t, s.path(imagesDir, "golden", imageFile), in, "\n  \"size\": 2097152")
			rewrite(t, s.path(imagesDir, "golden", imageFile), id, "    \"size\": 2097152")
		}, true},
		{"longer data", func(s *Store) { err := os.Truncate(s.ImageData("golden"), 1<<21); must(t, err) }, true},
		{"shorter data", func(s *Store) { err := os.Truncate(s.ImageData("golden"), 1<<19); must(t, err) }, true},
		{"an identity that is larger", func(s *Store) { rewrite(t, s.path(imagesDir, "golden", imageFile), id, "    \"size\": 2097152") }, false},
		{"an identity of 0 bytes", func(s *Store) { rewrite(t, s.path(imagesDir, "golden", imageFile), id, "    \"size\": 0") }, false},
	} {
		s := newStore(t)
		importRaw(t, s, "golden", noise(3, 1<<20))
		create(t, s, "before", CreateOptions{From: "golden"})
		c.do(s)
		r := check(t, s, CheckOptions{})
		if r.Left() == 0 {
			t.Errorf("%s: check: expected a problem, found none", c.what)
		}
		_, err := s.Create(ctx, "d", CreateOptions{From: "golden"})
		if refused := errors.Is(err, ErrRefused); refused != c.refused || err != nil && !refused {
			t.Errorf("%s: create: refused expected: %v, found %v", c.what, c.refused, err)
		}
		o, err := s.OpenDisk(ctx, "before", OpenOptions{})
		if refused := errors.Is(err, ErrRefused); refused != c.refused || err != nil && !refused {
			t.Errorf("%s: open: refused expected: %v, found %v", c.what, c.refused, err)
		}
		if err == nil {
			must(t, o.Close())
		}
	}
}
