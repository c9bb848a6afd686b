package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// Whatever a user does with manifests by hand, no layer or image that a manifest names is removed.
func TestNothingNamedIsRemoved(t *testing.T) {
	cases := map[string]func(h hand){
		"index of an older backup": func(h hand) {
			test.Must(h.t, os.CopyFS(h.Dir()+".bak", os.DirFS(h.path(indexDir))))
			create(h.t, h.Store, "kept", CreateOptions{From: "a@t"})
			put(h.t, h.Store, "kept", noise(9, 4096), 8192)
			test.Must(h.t, os.RemoveAll(h.path(indexDir)))
			test.Must(h.t, os.CopyFS(h.path(indexDir), os.DirFS(h.Dir()+".bak")))
			h.remove("a")
		},
		"copy that is edited later": func(h hand) {
			h.copy("a", "kept")
			h.remove("a")
			h.edit("kept", h.manifest("kept"), "a")
		},
		"two copies, one is edited": func(h hand) {
			h.copy("a", "b")
			h.copy("a", "kept")
			h.indexed()
			h.edit("kept", h.manifest("kept"), "a")
			h.remove("a")
		},
		"copy under a name of no disk": func(h hand) {
			h.copy("a", "a copy~")
			h.remove("a")
			h.move(h.path(disksDir, "a copy~"), h.path(disksDir, "kept"))
			h.edit("kept", h.manifest("kept"), "a")
		},
		"manifest changed in place": func(h hand) {
			create(h.t, h.Store, "kept", CreateOptions{Size: 1 << 20})
			h.indexed()
			h.edit("kept", h.manifest("a"), "a")
			h.remove("a")
		},
		"manifest restored after a rollback": func(h hand) {
			backup := h.manifest("a")
			h.promote("a", "t2")
			create(h.t, h.Store, "v", CreateOptions{From: "a@t2"})
			_, err := h.Rollback(ctx, Ref{"a", "t"})
			test.Must(h.t, err)
			test.Must(h.t, os.WriteFile(h.path(disksDir, "a", diskFile), backup, 0o600))
			h.remove("v")
			for _, l := range first(h.Disk("a")).Layers {
				_, err := os.Stat(h.paths(&l).Map)
				test.Must(h.t, err)
			}
			create(h.t, h.Store, "kept", CreateOptions{From: "a@t"})
		},
		"times put back": func(h hand) {
			st := first(os.Stat(h.path(disksDir)))
			text := h.manifest("a")
			h.copy("a", "kept")
			h.edit("kept", text, "a")
			old := first(os.Stat(h.path(disksDir, "a", diskFile))).ModTime()
			test.Must(h.t, os.Chtimes(h.path(disksDir, "kept", diskFile), old, old))
			test.Must(h.t, os.Chtimes(h.path(disksDir), st.ModTime(), st.ModTime()))
			h.remove("a")
		},
		"manifest of the same length and time": func(h hand) {
			create(h.t, h.Store, "kept", CreateOptions{Size: 1 << 20})
			h.promote("kept", "t")
			h.indexed()
			path := h.path(disksDir, "kept", diskFile)
			st := first(os.Stat(path))
			h.edit("kept", h.manifest("a"), "a")
			test.Must(h.t, os.Chtimes(path, st.ModTime(), st.ModTime()))
			h.remove("a")
		},
		"removal killed, manifest restored": func(h hand) {
			backup := h.manifest("a")
			for n := 1; ; n++ {
				m := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n})
				h.fs = m
				_, _ = h.Remove(ctx, "a")
				m.CloseFiles()
				h.fs = vfs.OS{}
				if _, err := os.Stat(h.path(disksDir, "a")); err != nil {
					break
				}
			}
			test.Must(h.t, os.Mkdir(h.path(disksDir, "a"), 0o700))
			test.Must(h.t, os.WriteFile(h.path(disksDir, "a", diskFile), backup, 0o600))
			create(h.t, h.Store, "x", CreateOptions{Size: 4096})
			check(h.t, h.Store, CheckOptions{Repair: true})
			h.move(h.path(disksDir, "a"), h.path(disksDir, "kept"))
			h.edit("kept", backup, "a")
		},
		"promotion killed, disk renamed": func(h hand) { h.killedPromotion(func() {}) },
		"promotion killed, disk renamed, repaired": func(h hand) {
			h.killedPromotion(func() { check(h.t, h.Store, CheckOptions{Repair: true}) })
		},
		"promotion killed, disk away": func(h hand) {
			away := filepath.Join(h.t.TempDir(), "kept")
			h.killedPromotion(func() {
				h.move(h.path(disksDir, "kept"), away)
				create(h.t, h.Store, "y", CreateOptions{Size: 4096})
				check(h.t, h.Store, CheckOptions{Repair: true})
				h.move(away, h.path(disksDir, "kept"))
			})
		},
		"directory behind a symbolic link": func(h hand) {
			create(h.t, h.Store, "kept", CreateOptions{From: "a@t"})
			away := filepath.Join(h.t.TempDir(), "kept")
			h.move(h.path(disksDir, "kept"), away)
			test.Must(h.t, os.Symlink(away, h.path(disksDir, "kept")))
			if names := first(h.DiskNames()); len(names) != 2 {
				h.t.Errorf("disks %q", names)
			}
			h.remove("a")
			check(h.t, h.Store, CheckOptions{Repair: true, Prune: true})
		},
		"directory away for a moment": func(h hand) {
			create(h.t, h.Store, "kept", CreateOptions{From: "a@t"})
			put(h.t, h.Store, "kept", noise(9, 4096), 8192)
			away := filepath.Join(h.t.TempDir(), "kept")
			h.move(h.path(disksDir, "kept"), away)
			h.remove("a")
			if _, err := h.Remove(ctx, "img"); !errors.Is(err, ErrInUse) {
				h.t.Errorf("the image of a disk that is away: %v", err)
			}
			check(h.t, h.Store, CheckOptions{Repair: true})
			h.move(away, h.path(disksDir, "kept"))
		},
		"directory away, its name taken meanwhile": func(h hand) {
			create(h.t, h.Store, "kept", CreateOptions{From: "a@t"})
			away := filepath.Join(h.t.TempDir(), "kept")
			h.move(h.path(disksDir, "kept"), away)
			create(h.t, h.Store, "kept", CreateOptions{Size: 4096})
			h.remove("kept")
			h.remove("a")
			h.move(away, h.path(disksDir, "kept"))
		},
		"image changed in place": func(h hand) {
			importRaw(h.t, h.Store, "img2", noise(1, imageSize))
			create(h.t, h.Store, "kept", CreateOptions{From: "img"})
			h.indexed()
			text := bytes.Replace(h.manifest("kept"), []byte(`"image": "img"`),
				[]byte(`"image": "img2"`), 1)
			test.Must(h.t, os.WriteFile(h.path(disksDir, "kept", diskFile), text, 0o600))
			if _, err := h.Remove(ctx, "img2"); !errors.Is(err, ErrInUse) {
				h.t.Errorf("the image of a disk: %v", err)
			}
		},
		"cut off after a promotion that the index has from its beginning alone": func(h hand) {
			h.promote("a", "t2")
			create(h.t, h.Store, "v", CreateOptions{From: "a@t2"})
			text := h.manifest("a")
			test.Must(h.t, os.Truncate(h.path(disksDir, "a", diskFile), 60))
			h.remove("v")
			test.Must(h.t, os.WriteFile(h.path(disksDir, "a", diskFile), text, 0o600))
			create(h.t, h.Store, "kept", CreateOptions{From: "a@t2"})
		},
	}
	for name, do := range cases {
		t.Run(name, func(t *testing.T) {
			h := hand{newStore(t), t}
			importRaw(t, h.Store, "img", noise(1, imageSize))
			create(t, h.Store, "a", CreateOptions{From: "img"})
			put(t, h.Store, "a", noise(2, 4096), 0)
			h.promote("a", "t")
			h.indexed()
			do(h)
			test.Must(t, test.Err(os.Stat(h.path(imagesDir, "img", dataFile))))
			if !bytes.Contains(content(t, h.Store, "kept"), noise(2, 4096)) &&
				name != "image changed in place" {
				t.Error("the disk shows something else")
			}
		})
	}
}

// rm of a disk whose directory is a symbolic link removes its layers and the link.
func TestRemoveDiskBehindALink(t *testing.T) {
	s := newStore(t)
	create(t, s, "v", CreateOptions{Size: 1 << 20})
	away := filepath.Join(t.TempDir(), "v")
	test.Must(t, os.Rename(s.path(disksDir, "v"), away))
	test.Must(t, os.Symlink(away, s.path(disksDir, "v")))
	_, err := s.Remove(ctx, "v")
	test.Must(t, err)
	for _, dir := range []string{disksDir, layersDir, tmpDir} {
		if left := entries(t, s.path(dir)); len(left) > 0 {
			t.Errorf("in %s: %q", dir, left)
		}
	}
	if _, err := os.Stat(filepath.Join(away, diskFile)); err != nil {
		t.Error(err)
	}
}

// Files kept for a disk that was moved away are removed only when the user gives the disk up.
func TestPruneGivesUpADiskThatIsAway(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "img", noise(1, imageSize))
	create(t, s, "v", CreateOptions{From: "img"})
	test.Must(t, os.Rename(s.path(disksDir, "v"), filepath.Join(t.TempDir(), "v")))
	for range 2 {
		if r := check(t, s, CheckOptions{Repair: true}); r.Found != 1 || r.Left() != 1 {
			t.Errorf("%d problems, %d left", r.Found, r.Left())
		}
	}
	test.ErrorIs(t, test.Err(s.Remove(ctx, "img")), ErrInUse, "remove the image")
	if r := check(t, s, CheckOptions{Repair: true, Prune: true}); r.Left() != 0 {
		t.Errorf("%d problems are left", r.Left())
	}
	if left := entries(t, s.path(layersDir)); len(left) > 0 {
		t.Errorf("layers %q", left)
	}
	_, err := s.Remove(ctx, "img")
	test.Must(t, err)
}

// The index grows by lines, and is rewritten when it has doubled, with the same content.
func TestIndexIsCompacted(t *testing.T) {
	s := newStore(t)
	m := create(t, s, "a", CreateOptions{Size: 4096})
	largest := int64(0)
	for range 2000 {
		s.indexManifest(m, uuid.New())
		largest = max(largest, first(os.Stat(s.path(indexDir, indexFile))).Size())
	}
	if largest > 4*compactFrom {
		t.Errorf("the index grew to %d bytes", largest)
	}
	if e := s.readIndex().entries["a"]; e == nil || e.Head != m.Head().UUID || len(e.Layers) != 2 {
		t.Errorf("entry %+v", e)
	}
}

// The index does not believe an entry about a manifest that was changed just before it was read,
// because a change just after may leave the same times. An unreadable manifest does not make the
// index grow.
func TestIndexTrustsOldManifests(t *testing.T) {
	s := newStore(t)
	h := hand{s, t}
	create(t, s, "a", CreateOptions{Size: 4096})
	look := func() (*vfs.Version, int) {
		v, err := s.survey(true)
		test.Must(t, err)
		e := s.readIndex().entries["a"]
		if v.disks["a"] == nil || e == nil {
			t.Fatal("the index does not know the disk")
		}
		return e.Manifest, len(s.readIndex().text)
	}
	if st, _ := look(); st != nil {
		t.Error("a manifest that is new is taken for known")
	}
	h.indexed()
	if st, _ := look(); st == nil {
		t.Error("a manifest that is old is not taken for known")
	}
	test.Must(t, os.Truncate(s.path(disksDir, "a", diskFile), 300))
	_, size := look()
	for range 3 {
		if st, now := look(); st != nil || now != size {
			t.Errorf("state %v, an index of %d bytes, was %d", st, now, size)
		}
	}
}
