package store

import (
	"errors"
	"os"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

var errInjected = errors.New("injected")

// Each operation fails at each of its changes in turn. The store is then in the state before or
// after the operation, and after a cleanup has no layer that no manifest names.
func TestFailureAtEveryStep(t *testing.T) {
	ops := []struct {
		name string
		do   func(s *Store) error
	}{
		{"create", func(s *Store) error {
			_, err := s.Create(ctx, "new", CreateOptions{From: "vm1@t"})
			return err
		}},
		{"import", func(s *Store) error {
			_, err := s.Import(ctx, s.ImageData("img"), "new", ImportOptions{})
			return err
		}},
		{"promote", func(s *Store) error {
			_, err := s.Promote(ctx, []string{"vm1"}, "u")
			return err
		}},
		{"promote two", func(s *Store) error {
			_, err := s.Promote(ctx, []string{"vm1", "vm2"}, "u")
			return err
		}},
		{"rollback", func(s *Store) error {
			_, err := s.Rollback(ctx, Ref{"vm1", "t"})
			return err
		}},
		{"remove disk", func(s *Store) error { _, err := s.Remove(ctx, "vm1"); return err }},
		{"remove image", func(s *Store) error { _, err := s.Remove(ctx, "spare"); return err }},
	}
	for _, op := range ops {
		t.Run(op.name, func(t *testing.T) {
			for n := 1; ; n++ {
				s := newStore(t)
				importRaw(t, s, "img", noise(1, imageSize))
				importRaw(t, s, "spare", noise(2, 4096))
				create(t, s, "vm1", CreateOptions{From: "img"})
				put(t, s, "vm1", noise(3, 4096), 0)
				test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
				create(t, s, "vm2", CreateOptions{From: "vm1@t"})
				want := content(t, s, "vm2")

				left := n // changes until the one that fails
				s.fs = faultfs.Over(vfs.OS{}, func(c faultfs.Call) (f faultfs.Fault) {
					switch c.Op {
					case "create", "rename", "mkdir", "sync directory":
						if left--; left == 0 {
							f.Err = errInjected
						}
					}
					return f
				})
				err := op.do(s)
				s.fs = vfs.OS{}
				if left > 0 {
					if err != nil || n < 3 {
						t.Fatalf("after %d changes: %v", n-1, err)
					}
					return
				}
				if err != nil && !errors.Is(err, errInjected) {
					t.Fatalf("step %d: %v", n, err)
				}
				consistent(t, s, want)
				if op.name == "promote two" {
					together(t, s, "vm1", "vm2", "u")
				}
				if t.Failed() {
					t.Fatalf("step %d: %v", n, err)
				}
			}
		})
	}
}

// together requires that both disks have the tag, or neither.
func together(t *testing.T, s *Store, a, b, tag string) {
	t.Helper()
	var has [2]bool
	for i, name := range []string{a, b} {
		m, err := s.Disk(name)
		if err != nil {
			t.Error(err)
			return
		}
		_, err = m.Tagged(tag)
		has[i] = err == nil
	}
	if has[0] != has[1] {
		t.Errorf("tag %s: on %s %v, on %s %v", tag, a, has[0], b, has[1])
	}
}

// consistent cleans up and checks that every layer has a user, every disk opens, and shared content
// is unchanged.
func consistent(t *testing.T, s *Store, want []byte) {
	t.Helper()
	w, err := s.begin(ctx)
	test.Must(t, err)
	w.close()
	if works, _ := os.ReadDir(s.path(tmpDir)); len(works) != 0 {
		t.Errorf("%d transaction directories", len(works))
	}
	disks, err := s.Disks()
	if err != nil {
		t.Error(err)
	}
	users := map[string]bool{}
	for _, m := range disks {
		for _, id := range m.uuids() {
			users[id.String()] = true
		}
	}
	layers, _ := os.ReadDir(s.path(layersDir))
	for _, l := range layers {
		if !users[l.Name()] {
			t.Errorf("layer %s has no user", l.Name())
		}
	}
	for _, m := range disks {
		got := content(t, s, m.Name)
		if m.Base != nil && string(got) != string(want) {
			t.Errorf("disk %s reads something else", m.Name)
		}
	}
	images, err := s.Images()
	if err != nil {
		t.Error(err)
	}
	for _, img := range images {
		if data, err := os.ReadFile(s.ImageData(img.Name)); err != nil ||
			chunkSum(data) != img.ChunkSHA256 {
			t.Errorf("image %s: %v", img.Name, err)
		}
	}
}
