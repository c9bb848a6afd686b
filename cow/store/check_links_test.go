package store

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestCheckOfLinkedFiles: a file of the store that is two parts, of one disk or of two, is reported
// for every pair of parts, also by a check of that disk alone, because the disk cannot be opened.
func TestCheckOfLinkedFiles(t *testing.T) {
	ctx := context.Background()
	links := map[string]func(from, to string) error{"hard link": os.Link, "symbolic link": os.Symlink}
	for link, make := range links {
		for _, c := range []struct {
			what     string
			from, to func(s *Store, d, other *Manifest) string
		}{
			{"data of two layers", func(s *Store, d, _ *Manifest) string { return s.paths(&d.Layers[0]).Data }, func(s *Store, d, _ *Manifest) string { return s.paths(&d.Layers[1]).Data }},
			{"data of a layer and the head", func(s *Store, d, _ *Manifest) string { return s.paths(&d.Layers[0]).Data }, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"data and map", func(s *Store, d, _ *Manifest) string { return s.paths(&d.Layers[0]).Map }, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"data and image", func(s *Store, _, _ *Manifest) string { return s.ImageData("golden") }, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"data of another disk", func(s *Store, _, o *Manifest) string { return s.paths(o.Head()).Data }, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"another disk on data of this", func(s *Store, d, _ *Manifest) string { return s.paths(&d.Layers[1]).Data }, func(s *Store, _, o *Manifest) string { return s.paths(o.Head()).Data }},
		} {
			s := newStore(t)
			importRaw(t, s, "golden", noise(3, 1<<20))
			create(t, s, "d", CreateOptions{From: "golden"})
			create(t, s, "other", CreateOptions{From: "golden"})
			for _, tag := range []string{"t", "u"} {
				must(t, errOf(s.Promote(ctx, []string{"d"}, tag)))
			}
			d, err := s.Disk("d")
			other, err2 := s.Disk("other")
			must(t, errors.Join(err, err2))
			from, to := c.from(s, d, other), c.to(s, d, other)
			must(t, errors.Join(os.Remove(to), make(from, to)))
			named := "d"
			if strings.HasPrefix(c.what, "another") && link == "symbolic link" {
				named = "other" // the file itself does not show who links to it
			}
			for _, o := range []CheckOptions{{}, {Names: []string{named}}, {Names: []string{named}, Depth: CheckFast}} {
				r := check(t, s, o)
				found := false
				for _, k := range r.Reports {
					for _, p := range k.Problems {
						found = found || k.Kind == KindDisk && p.What == "owner of the file's bytes"
					}
				}
				if !found {
					t.Errorf("%s, %s: check %v: expected a problem, found none", c.what, link, o)
				}
			}
		}
	}
	s := newStore(t)
	importRaw(t, s, "golden", noise(3, 1<<20))
	create(t, s, "d", CreateOptions{From: "golden"})
	if r := check(t, s, CheckOptions{Names: []string{"d"}}); r.Found != 0 {
		t.Errorf("a disk on files of its own: expected no problem, found %d", r.Found)
	}
}
