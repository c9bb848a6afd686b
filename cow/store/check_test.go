package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/finding"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

func withoutSync() vfs.FS { return faultfs.WithoutSync(vfs.OS{}) }

// mouldSize is small because every case hashes it several times. The last block is partial.
const mouldSize = 64<<10 + 512

// mould is an undamaged store that the cases copy.
type mould struct {
	dir, base string
	reads     map[string]string // SHA-256 of each disk's content
}

func newMould(t *testing.T) *mould {
	t.Helper()
	s := newStore(t)
	s.fs = withoutSync()
	importRaw(t, s, "img", noise(1, mouldSize))
	base := tempFile(t, "base.raw", noise(4, 65536))
	create(t, s, "place", CreateOptions{Base: base})
	create(t, s, "vm1", CreateOptions{From: "img"})
	put(t, s, "vm1", noise(5, 8192), 0)
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
	put(t, s, "vm1", noise(6, 8192), 8192)
	create(t, s, "vm2", CreateOptions{From: "vm1@t"})
	create(t, s, "bare", CreateOptions{Size: 1 << 20})
	m := &mould{dir: s.Dir(), base: base, reads: map[string]string{}}
	for _, name := range []string{"vm1", "vm2", "bare", "place"} {
		m.reads[name] = sum(content(t, s, name))
	}
	return m
}

// cast returns a damaged copy of the mould.
func (m *mould) cast(t *testing.T, d damage) *hurt {
	t.Helper()
	dir := t.TempDir()
	s := openStore(t, copyTree(t, m.dir, filepath.Join(dir, "store")))
	s.fs = withoutSync()
	h := &hurt{Store: s, t: t, base: copyTree(t, m.base, filepath.Join(dir, "base.raw"))}
	h.manifest("place", m.base, h.base)
	d.do(h)
	return h
}

// copyTree copies files with their holes and times.
func copyTree(t *testing.T, from, to string) string {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(path, from)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil {
			err = os.WriteFile(target, data, 0o600)
		}
		if err == nil {
			err = os.Chtimes(target, st.ModTime(), st.ModTime())
		}
		return err
	})
	test.Must(t, err)
	return to
}

func check(t *testing.T, s *Store, o CheckOptions) *CheckReport {
	t.Helper()
	r, err := s.Check(ctx, o)
	test.Must(t, err)
	return r
}

// problemTexts formats problems as the table of damages does: status, name of the disk or image,
// object, what.
func problemTexts(h *hurt, r *CheckReport) (all []string) {
	names := map[uuid.UUID]string{}
	for _, m := range first(h.Disks()) {
		for _, l := range m.Sealed() {
			names[l.UUID] = "SEALED"
		}
	}
	for _, m := range first(h.Disks()) {
		names[m.Head().UUID] = m.Name
	}
	for _, k := range r.Reports {
		name := k.Name
		if name == "" {
			name = k.Kind
		}
		if k.Error != "" && len(k.Problems) == 0 {
			all = append(all, "failed "+name)
		}
		for _, p := range k.Problems {
			object := p.Object
			if id, ok := strings.CutPrefix(object, "layer "); ok {
				object = "layer ORPHAN"
				if n := names[uuid.MustParse(id)]; n != "" {
					object = "layer " + n
				}
			}
			all = append(all, fmt.Sprintf("%s %s %s: %s", p.Status, name, object, p.What))
		}
	}
	return all
}

func first[T any](v T, _ error) T { return v }

// refusals returns the disks that cannot be opened or read. The others must have the content from
// before the damage.
func (m *mould) refusals(t *testing.T, h *hurt) (refused []string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(m.reads)) {
		o, err := h.OpenDisk(ctx, name, OpenOptions{})
		if err != nil {
			refused = append(refused, name)
			continue
		}
		p := make([]byte, o.Disk.Size())
		_, err = o.Disk.ReadAt(p, 0)
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		switch {
		case errors.Is(err, layer.ErrDamaged):
			refused = append(refused, name)
		case err != nil || sum(p) != m.reads[name]:
			t.Errorf("%s was opened and reads something else: %v", name, err)
		}
	}
	return refused
}

// same compares lists in any order.
func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Clone(got), slices.Clone(want)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"),
			strings.Join(want, "\n\t"))
	}
}

func repaired(texts []string) (all []string) {
	for _, text := range texts {
		if rest, ok := strings.CutPrefix(text, string(finding.Repairable)); ok {
			text = string(finding.Repaired) + rest
		}
		all = append(all, text)
	}
	return all
}

// check finds every damage and changes nothing. A disk on it is refused or has the right content. A
// repair repairs what the table says, and a second repair finds nothing to do. After it disks have
// the right content or are still refused.
func TestDamages(t *testing.T) {
	m := newMould(t)
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			h := m.cast(t, d)
			before := snapshot(t, h.Dir())
			found := check(t, h.Store, CheckOptions{})
			got := problemTexts(h, found)
			sameFiles(t, before, snapshot(t, h.Dir()))

			opened := m.cast(t, d) // opening seals, cleans up and marks
			same(t, "refused before a repair", m.refusals(t, opened), d.refused)

			fixed := check(t, h.Store, CheckOptions{Repair: true})
			gotFixed := problemTexts(h, fixed)
			same(t, "check", got, d.want)
			want := repaired(d.want)
			if f := otherwise[d.name]; f != nil {
				want = f
			}
			same(t, "repair", gotFixed, want)
			after := snapshot(t, h.Dir())
			again := check(t, h.Store, CheckOptions{Repair: true})
			if again.Repaired != 0 || again.Left() != fixed.Left() {
				t.Errorf("a second repair: repaired %d, left %d, the first left %d", again.Repaired,
					again.Left(), fixed.Left())
			}
			sameFiles(t, after, snapshot(t, h.Dir()))
			same(t, "refused after the repair", m.refusals(t, h), d.after)
		})
	}
}

// A repair is killed at each of its changes. The next repair comes to the same end.
func TestKillAtEveryStepOfRepair(t *testing.T) {
	m := newMould(t)
	for _, names := range [][]string{
		{"header and map", "bit beyond the end of a sealed map", "temporary files",
			"interrupted command", "image touched"},
		{"head not closed", "lower layer is not sealed", "data cut behind the last owned block",
			"interrupted command with layers", "map of a disk that owns nothing cut"},
		{"interrupted promotion of two disks"},
	} {
		t.Run(names[0], func(t *testing.T) {
			d := damage{do: func(h *hurt) {
				for _, one := range damages() {
					if slices.Contains(names, one.name) {
						one.do(h)
					}
				}
			}}
			h := m.cast(t, d)
			witness := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{})
			h.fs = witness
			done := check(t, h.Store, CheckOptions{Repair: true})
			killed := 0
			for i, change := range witness.Changes() {
				if filepath.Base(change.Name) == lockFile || change.IsSync() {
					// nothing depends on the content of a lock file; death before a sync equals
					// death before the next call
					continue
				}
				n := i + 1
				h := m.cast(t, d)
				dies := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n})
				h.fs = dies
				_, err := h.Check(ctx, CheckOptions{Repair: true})
				dies.CloseFiles()
				h.fs = withoutSync()
				if !dies.Killed() {
					t.Fatalf("change %d, %s: it did not come: %v", n, change, err)
				}
				killed++
				again := check(t, h.Store, CheckOptions{Repair: true})
				if again.Left() != done.Left() || again.Failed != 0 {
					t.Errorf("killed at change %d, %s: the next repair leaves %d, failed %d: %v", n,
						last(dies), again.Left(), again.Failed, problemTexts(h, again))
				}
				if third := check(t, h.Store, CheckOptions{}); third.Found != again.Left() {
					t.Errorf("killed at change %d, %s: after the next repair: %v", n, last(dies),
						problemTexts(h, third))
				}
				if refused := m.refusals(t, h); refused != nil {
					t.Errorf("killed at change %d, %s: refused: %v", n, last(dies), refused)
				}
				if t.Failed() {
					break
				}
			}
			if killed < 5 {
				t.Errorf("killed %d times only", killed)
			}
			t.Logf("killed at each of %d changes", killed)
		})
	}
}

// TestCheckOfLinkedFiles: a file of the store that is two parts, of one disk or of two, is reported
// for every pair of parts, also by a check of that disk alone, because the disk cannot be opened.
func TestCheckOfLinkedFiles(t *testing.T) {
	links := map[string]func(from, to string) error{
		"hard link": os.Link, "symbolic link": os.Symlink}
	for link, make := range links {
		for _, c := range []struct {
			what     string
			from, to func(s *Store, d, other *Manifest) string
		}{
			{"data of two layers", func(s *Store, d, _ *Manifest) string {
				return s.paths(&d.Layers[0]).Data
			}, func(s *Store, d, _ *Manifest) string { return s.paths(&d.Layers[1]).Data }},
			{"data of a layer and the head", func(s *Store, d, _ *Manifest) string {
				return s.paths(&d.Layers[0]).Data
			}, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"data and map", func(s *Store, d, _ *Manifest) string {
				return s.paths(&d.Layers[0]).Map
			}, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"data and image", func(s *Store, _, _ *Manifest) string {
				return s.ImageData("golden")
			}, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"data of another disk", func(s *Store, _, o *Manifest) string {
				return s.paths(o.Head()).Data
			}, func(s *Store, d, _ *Manifest) string { return s.paths(d.Head()).Data }},
			{"another disk on data of this", func(s *Store, d, _ *Manifest) string {
				return s.paths(&d.Layers[1]).Data
			}, func(s *Store, _, o *Manifest) string { return s.paths(o.Head()).Data }},
		} {
			s := newStore(t)
			importRaw(t, s, "golden", noise(3, 1<<20))
			create(t, s, "d", CreateOptions{From: "golden"})
			create(t, s, "other", CreateOptions{From: "golden"})
			for _, tag := range []string{"t", "u"} {
				test.Must(t, test.Err(s.Promote(ctx, []string{"d"}, tag)))
			}
			d, err := s.Disk("d")
			other, err2 := s.Disk("other")
			test.Must(t, errors.Join(err, err2))
			from, to := c.from(s, d, other), c.to(s, d, other)
			test.Must(t, errors.Join(os.Remove(to), make(from, to)))
			named := "d"
			if strings.HasPrefix(c.what, "another") && link == "symbolic link" {
				named = "other" // the file itself does not show who links to it
			}
			for _, o := range []CheckOptions{{}, {Names: []string{named}}, {Names: []string{named},
				Depth: CheckFast}} {
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
