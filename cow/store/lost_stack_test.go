package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// check --repair of a store from which a disk was moved away, and whose index does not know it,
// removes no layer on which another one lies. With Prune it removes all.
func TestRepairKeepsEmptyLayersBelowOthers(t *testing.T) {
	ctx := context.Background()
	for name, spoil := range map[string]func(s *Store, head string) error{
		"whole":                 func(*Store, string) error { return nil },
		"damaged header on top": func(_ *Store, head string) error { return os.Truncate(head, 100) },
	} {
		s := newStore(t)
		create(t, s, "a", CreateOptions{Size: 1 << 20})
		for _, tag := range []string{"t1", "t2"} {
			if _, err := s.Promote(ctx, []string{"a"}, tag); err != nil {
				t.Fatal(err)
			}
		}
		put(t, s, "a", noise(1, 4096), 0)
		saw := content(t, s, "a")
		head := s.paths(first(s.Disk("a")).Head()).Map
		saved := first(os.ReadFile(head))
		away := filepath.Join(t.TempDir(), "a")
		must(t, errors.Join(os.Rename(s.path(disksDir, "a"), away), os.RemoveAll(s.path(indexDir)), spoil(s, head)))
		check(t, s, CheckOptions{Repair: true})
		check(t, s, CheckOptions{Repair: true})
		if n := len(entries(t, s.path(layersDir))); n != 3 {
			t.Errorf("%s: %d layers are left, expected 3", name, n)
			continue
		}
		must(t, errors.Join(os.Rename(away, s.path(disksDir, "a")), os.WriteFile(head, saved, 0o600)))
		if !bytes.Equal(content(t, s, "a"), saw) {
			t.Errorf("%s: the disk shows something else", name)
		}
		must(t, errors.Join(os.RemoveAll(s.path(disksDir, "a")), os.RemoveAll(s.path(indexDir))))
		check(t, s, CheckOptions{Repair: true, Prune: true})
		if left := entries(t, s.path(layersDir)); len(left) > 0 {
			t.Errorf("%s: after --prune: %v", name, left)
		}
	}
}

// check --repair of a store that has lost a manifest, with or without the index, keeps the head of
// a killed process: the writes that its guest has not flushed are in memory.
func TestRepairKeepsUnflushedWritesOfALostDisk(t *testing.T) {
	ctx := context.Background()
	for name, lose := range map[string]func(h *hurt) error{
		"rm --damaged": func(h *hurt) error {
			if err := os.Truncate(h.path(disksDir, "vm1", diskFile), 0); err != nil {
				return err
			}
			_, err := h.RemoveDamaged(ctx, "vm1")
			return err
		},
		"moved away, without the index": func(h *hurt) error {
			return errors.Join(os.RemoveAll(h.path(disksDir, "vm1")), os.RemoveAll(h.path(indexDir)))
		},
	} {
		h, want := die(t, "u")
		manifest := first(os.ReadFile(h.path(disksDir, "vm1", diskFile)))
		must(t, lose(h))
		if r := check(t, h.Store, CheckOptions{Repair: true}); r.Left() == 0 {
			t.Errorf("%s: the layers that no disk names are not reported", name)
		}
		must(t, os.MkdirAll(h.path(disksDir, "vm1"), 0o700))
		must(t, os.WriteFile(h.path(disksDir, "vm1", diskFile), manifest, 0o600))
		if !bytes.Equal(content(t, h.Store, "vm1"), want) {
			t.Errorf("%s: the disk shows something else", name)
		}
	}
}
