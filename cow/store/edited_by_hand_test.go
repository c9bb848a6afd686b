package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// hand is a store in which a user changes files by hand while cowblk deletes. The content of the
// disk "kept" must stay.
type hand struct {
	*Store
	t *testing.T
}

func (h hand) promote(name, tag string) {
	h.t.Helper()
	_, err := h.Promote(ctx, []string{name}, tag)
	test.Must(h.t, err)
}

func (h hand) remove(name string) {
	h.t.Helper()
	_, err := h.Remove(ctx, name)
	test.Must(h.t, err)
}

// copy is cp -a of a disk's directory.
func (h hand) copy(from, to string) {
	h.t.Helper()
	test.Must(h.t, os.CopyFS(h.path(disksDir, to), os.DirFS(h.path(disksDir, from))))
}

func (h hand) manifest(name string) []byte {
	h.t.Helper()
	return first(os.ReadFile(h.path(disksDir, name, diskFile)))
}

// edit writes a manifest in place, with another name in it.
func (h hand) edit(name string, text []byte, was string) {
	h.t.Helper()
	text = bytes.Replace(text, []byte(`"name": "`+was+`"`), []byte(`"name": "`+name+`"`), 1)
	test.Must(h.t, os.WriteFile(h.path(disksDir, name, diskFile), text, 0o600))
}

func (h hand) move(from, to string) {
	h.t.Helper()
	test.Must(h.t, os.Rename(from, to))
}

// indexed makes the index know every disk. With old, the index also trusts what it knows.
func (h hand) indexed() {
	h.t.Helper()
	h.clockMargin = -time.Hour
	create(h.t, h.Store, "other", CreateOptions{Size: 4096})
	h.remove("other")
}

// killedPromotion kills a promotion of a after its manifest names the new head, renames the disk to
// kept by hand, and has the next command clean up after f.
func (h hand) killedPromotion(f func()) {
	h.t.Helper()
	for n := 1; ; n++ {
		m := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n})
		h.fs = m
		_, _ = h.Promote(ctx, []string{"a"}, fmt.Sprint("n", n))
		m.CloseFiles()
		h.fs = vfs.OS{}
		if len(first(h.Disk("a")).Layers) > 2 {
			break
		}
	}
	if len(entries(h.t, h.path(tmpDir))) == 0 {
		h.t.Fatal("the promotion has ended")
	}
	text := h.manifest("a")
	h.move(h.path(disksDir, "a"), h.path(disksDir, "kept"))
	h.edit("kept", text, "a")
	f()
	create(h.t, h.Store, "z", CreateOptions{Size: 4096})
}

// A removal or a rollback is killed at each of its changes, and a user restores the manifest before
// the next command finds the remains. The disk is whole.
func TestManifestRestoredAfterAKill(t *testing.T) {
	for op, do := range map[string]func(s *Store) error{
		"remove":   func(s *Store) error { _, err := s.Remove(ctx, "a"); return err },
		"rollback": func(s *Store) error { _, err := s.Rollback(ctx, Ref{"a", "t"}); return err },
	} {
		t.Run(op, func(t *testing.T) {
			restored := 0
			for n := 1; ; n++ {
				h := hand{newStore(t), t}
				h.fs = withoutSync()
				create(t, h.Store, "a", CreateOptions{Size: 1 << 20})
				h.promote("a", "t")
				h.promote("a", "u")
				h.indexed()
				put(t, h.Store, "a", noise(3, 4096), 4096)
				want, backup, before := content(t, h.Store, "a"), h.manifest("a"),
					first(h.Disk("a"))
				m := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n})
				h.fs = m
				err := do(h.Store)
				m.CloseFiles()
				h.fs = withoutSync()
				if err == nil && !m.Killed() {
					break
				}
				if now, _ := os.ReadFile(h.path(disksDir, "a", diskFile)); bytes.Equal(now,
					backup) || len(entries(t, h.path(tmpDir))) == 0 {
					continue // it has not begun, or has ended
				}
				whole := 0
				for _, l := range before.Layers {
					for _, file := range []string{mapFile, dataFile} {
						out, _ := filepath.Glob(h.path(tmpDir, "*", l.UUID.String(), file))
						in, _ := filepath.Glob(h.path(layersDir, l.UUID.String(), file))
						whole += len(in) + len(out)
					}
				}
				if whole < 2*len(before.Layers) {
					continue // files of the layers are gone: too late
				}
				restored++
				test.Must(t, os.MkdirAll(h.path(disksDir, "a"), 0o700))
				test.Must(t, os.WriteFile(h.path(disksDir, "a", diskFile), backup, 0o600))
				create(t, h.Store, "x", CreateOptions{Size: 4096})
				if !bytes.Equal(content(t, h.Store, "a"), want) {
					t.Errorf("killed at change %d: the disk shows something else: %s", n, last(m))
				}
			}
			if restored < 2 {
				t.Errorf("the manifest was restored %d times", restored)
			}
		})
	}
}

// A directory of a disk that was copied or renamed by hand is reported, with a way to continue that
// loses nothing.
func TestCopiedByHand(t *testing.T) {
	s := newStore(t)
	test.Must(t, test.Err(s.Create(t.Context(), "a", CreateOptions{Size: 1 << 20})))
	disks := filepath.Join(s.Dir(), "disks")
	test.Must(t, os.CopyFS(filepath.Join(disks, "b"), os.DirFS(filepath.Join(disks, "a"))))
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
	test.Must(t, os.Rename(filepath.Join(disks, "a"), filepath.Join(t.TempDir(), "a")))
	says(`set its name to "b" in `)
	path := filepath.Join(disks, "b", "disk.json")
	text := readFile(t, path)
	test.Must(t, os.WriteFile(path, []byte(strings.Replace(string(text), `"name": "a"`,
		`"name": "b"`, 1)), 0o600))
	if m, err := s.Disk("b"); err != nil || m.Name != "b" {
		t.Errorf("as advised: %v", err)
	}
}

// check --repair of a store from which a disk was moved away, and whose index does not know it,
// removes no layer on which another one lies. With Prune it removes all.
func TestRepairKeepsEmptyLayersBelowOthers(t *testing.T) {
	for name, spoil := range map[string]func(s *Store, head string) error{
		"whole": func(*Store, string) error { return nil },
		"damaged header on top": func(_ *Store, head string) error {
			return os.Truncate(head, 100)
		},
	} {
		s := newStore(t)
		create(t, s, "a", CreateOptions{Size: 1 << 20})
		for _, tag := range []string{"t1", "t2"} {
			test.Must(t, test.Err(s.Promote(ctx, []string{"a"}, tag)))
		}
		put(t, s, "a", noise(1, 4096), 0)
		saw := content(t, s, "a")
		head := s.paths(first(s.Disk("a")).Head()).Map
		saved := first(os.ReadFile(head))
		away := filepath.Join(t.TempDir(), "a")
		test.Must(t, errors.Join(os.Rename(s.path(disksDir, "a"), away),
			os.RemoveAll(s.path(indexDir)), spoil(s, head)))
		check(t, s, CheckOptions{Repair: true})
		check(t, s, CheckOptions{Repair: true})
		if n := len(entries(t, s.path(layersDir))); n != 3 {
			t.Errorf("%s: %d layers are left, expected 3", name, n)
			continue
		}
		test.Must(t, errors.Join(os.Rename(away, s.path(disksDir, "a")), os.WriteFile(head, saved,
			0o600)))
		if !bytes.Equal(content(t, s, "a"), saw) {
			t.Errorf("%s: the disk shows something else", name)
		}
		test.Must(t, errors.Join(os.RemoveAll(s.path(disksDir, "a")),
			os.RemoveAll(s.path(indexDir))))
		check(t, s, CheckOptions{Repair: true, Prune: true})
		if left := entries(t, s.path(layersDir)); len(left) > 0 {
			t.Errorf("%s: after --prune: %v", name, left)
		}
	}
}

// check --repair of a store that has lost a manifest, with or without the index, keeps the head of
// a killed process: the writes that its guest has not flushed are in memory.
func TestRepairKeepsUnflushedWritesOfALostDisk(t *testing.T) {
	for name, lose := range map[string]func(h *hurt) error{
		"rm --damaged": func(h *hurt) error {
			if err := os.Truncate(h.path(disksDir, "vm1", diskFile), 0); err != nil {
				return err
			}
			_, err := h.RemoveDamaged(ctx, "vm1")
			return err
		},
		"moved away, without the index": func(h *hurt) error {
			return errors.Join(os.RemoveAll(h.path(disksDir, "vm1")),
				os.RemoveAll(h.path(indexDir)))
		},
	} {
		h, want := die(t, "u")
		manifest := first(os.ReadFile(h.path(disksDir, "vm1", diskFile)))
		test.Must(t, lose(h))
		if r := check(t, h.Store, CheckOptions{Repair: true}); r.Left() == 0 {
			t.Errorf("%s: the layers that no disk names are not reported", name)
		}
		test.Must(t, os.MkdirAll(h.path(disksDir, "vm1"), 0o700))
		test.Must(t, os.WriteFile(h.path(disksDir, "vm1", diskFile), manifest, 0o600))
		if !bytes.Equal(content(t, h.Store, "vm1"), want) {
			t.Errorf("%s: the disk shows something else", name)
		}
	}
}
