package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow"
	"cowblk/cow/finding"
	"cowblk/internal/test"
)

// A user who can put other files in the place of a layer's or an image's leads no process to them,
// and nothing of what they name is changed.
func TestFilesThroughDirectoriesOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	// away moves a file or directory of the store to a directory of another user, and leaves a
	// link.
	away := func(t *testing.T, path, victim string) {
		to := filepath.Join(victim, filepath.Base(path))
		test.Must(t, os.Rename(path, to))
		test.Must(t, os.Symlink(to, path))
	}
	for name, change := range map[string]func(t *testing.T, s *Store, layer, victim string){
		"the layer behind a link": func(t *testing.T, _ *Store, layer, victim string) {
			away(t, layer, victim)
		},
		"data behind a link": func(t *testing.T, _ *Store, layer, victim string) {
			away(t, filepath.Join(layer, dataFile), victim)
		},
		"the map behind a link": func(t *testing.T, _ *Store, layer, victim string) {
			away(t, filepath.Join(layer, mapFile), victim)
		},
		"the layer is another's": func(t *testing.T, _ *Store, layer, _ string) {
			test.Must(t, os.Chown(layer, nobody, nobody))
		},
		"others may write to the layer": func(t *testing.T, _ *Store, layer, _ string) {
			test.Must(t, os.Chmod(layer, 0o777))
		},
		"a group may write to the layer": func(t *testing.T, _ *Store, layer, _ string) {
			test.Must(t, os.Chmod(layer, 0o770))
		},
		"two links": func(t *testing.T, _ *Store, layer, victim string) {
			away(t, layer, t.TempDir())
			away(t, filepath.Join(layer, dataFile), victim)
		},
		"a link in another's directory leads back": func(t *testing.T, _ *Store, layer,
			victim string) {
			test.Must(t, os.Rename(layer, layer+"2"))
			test.Must(t, os.Symlink(layer+"2", filepath.Join(victim, "link")))
			test.Must(t, os.Symlink(filepath.Join(victim, "link"), layer))
		},
		"another's file in a sticky directory": func(t *testing.T, _ *Store, layer, _ string) {
			sticky := t.TempDir()
			test.Must(t, os.Chmod(sticky, 0o777|os.ModeSticky))
			away(t, filepath.Join(layer, dataFile), sticky)
			test.Must(t, os.Chown(filepath.Join(sticky, dataFile), nobody, nobody))
		},
		"checksums behind a link": func(t *testing.T, _ *Store, layer, victim string) {
			test.Must(t, os.Symlink(filepath.Join(victim, "sums"),
				filepath.Join(layer, checksumsFile)))
		},
		"the image behind a link": func(t *testing.T, s *Store, _, victim string) {
			away(t, s.path(imagesDir, "gold"), victim)
		},
		"its data behind a link": func(t *testing.T, s *Store, _, victim string) {
			away(t, s.ImageData("gold"), victim)
		},
		"the image is another's": func(t *testing.T, s *Store, _, _ string) {
			test.Must(t, os.Chown(s.path(imagesDir, "gold"), nobody, nobody))
		},
		"all may write to the image": func(t *testing.T, s *Store, _, _ string) {
			test.Must(t, os.Chmod(s.path(imagesDir, "gold"), 0o777))
		},
	} {
		for _, sealed := range []bool{false, true} {
			title := name + ", the head"
			if sealed {
				title = name + ", a tag's layer"
			}
			t.Run(title, func(t *testing.T) {
				s := newStore(t)
				image := write(t, filepath.Join(t.TempDir(), "image"), make([]byte, 1<<20))
				_, err := s.Import(ctx, image, "gold", ImportOptions{})
				test.Must(t, err)
				create(t, s, "vm1", CreateOptions{From: "gold"})
				test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
				m := manifestOf(t, s, "vm1")
				l := m.Head()
				if sealed {
					l = &m.Layers[0]
				}
				victim := t.TempDir()
				test.Must(t, os.Chown(victim, nobody, nobody))
				change(t, s, s.path(layersDir, l.UUID.String()), victim)
				layers := len(entries(t, s.path(layersDir)))
				again, err := Open(s.Dir(), Options{})
				test.Must(t, err)
				_, opened := again.OpenDisk(ctx, "vm1", OpenOptions{})
				_, readOnly := again.OpenDisk(ctx, "vm1", OpenOptions{ReadOnly: true})
				_, promoted := again.Promote(ctx, []string{"vm1"}, "u")
				_, rolledBack := again.Rollback(ctx, Ref{Name: "vm1", Tag: "t"})
				refused := map[string]error{"open": opened, "read": readOnly, "promote": promoted,
					"rollback": rolledBack, "preflight": again.Preflight(ctx, "vm1", cow.Options{})}
				if sealed || strings.Contains(name, "image") {
					_, refused["tag"] = again.OpenTag(ctx, Ref{Name: "vm1", Tag: "t"},
						cow.Options{})
					_, refused["create"] = again.Create(ctx, "vm2", CreateOptions{From: "vm1@t"})
				}
				if strings.Contains(name, "image") {
					_, refused["create from image"] = again.Create(ctx, "vm3",
						CreateOptions{From: "gold"})
				}
				for what, err := range refused {
					if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
						"can lead this process to any file through it") {
						t.Errorf("%s: %v", what, err)
					}
				}
				if n := len(entries(t, s.path(layersDir))); n != layers {
					t.Errorf("%d layers, before %d", n, layers)
				}
				r, err := again.Check(ctx, CheckOptions{Repair: true})
				test.Must(t, err)
				told := false
				for _, k := range r.Reports {
					for _, p := range k.Problems {
						told = told || k.Name == "vm1" &&
							p.What == "directories on the way to the file" &&
							p.Status == finding.Left
					}
				}
				if !told {
					t.Errorf("check: %+v", r.Reports)
				}
			})
		}
	}
}

// A manifest behind a link through another user's directory names no files for this process.
func TestManifestThroughDirectoryOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	_, err := s.Promote(ctx, []string{"vm1"}, "t")
	test.Must(t, err)
	victim := t.TempDir()
	test.Must(t, os.Rename(s.path(disksDir, "vm1", diskFile), filepath.Join(victim, diskFile)))
	test.Must(t, os.Symlink(filepath.Join(victim, diskFile), s.path(disksDir, "vm1", diskFile)))
	test.Must(t, os.Chown(victim, nobody, nobody))
	_, opened := s.OpenDisk(ctx, "vm1", OpenOptions{})
	_, read := s.OpenTag(ctx, Ref{Name: "vm1", Tag: "t"}, cow.Options{})
	_, cloned := s.Create(ctx, "vm2", CreateOptions{From: "vm1@t"})
	_, rolledBack := s.Rollback(ctx, Ref{Name: "vm1", Tag: "t"})
	for what, err := range map[string]error{"open": opened, "tag": read, "create": cloned,
		"rollback": rolledBack} {
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
			"user nobody can lead this process to any file through it") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Links of root to directories of root, and files that others own but cannot replace, are used.
func TestFilesThroughDirectoriesOfTheirOwner(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	m := manifestOf(t, s, "vm1")
	layer := s.path(layersDir, m.Head().UUID.String())
	elsewhere := t.TempDir()
	test.Must(t, os.Rename(layer, filepath.Join(elsewhere, "l")))
	test.Must(t, os.Symlink(filepath.Join(elsewhere, "l"), layer))
	test.Must(t, os.Rename(filepath.Join(layer, dataFile), filepath.Join(elsewhere, "d")))
	test.Must(t, os.Symlink("../d", filepath.Join(layer, dataFile)))
	o, err := s.OpenDisk(ctx, "vm1", OpenOptions{})
	test.Must(t, err)
	test.Must(t, o.Close())
	r, err := s.Check(ctx, CheckOptions{})
	test.Must(t, err)
	for _, k := range r.Reports {
		if len(k.Problems) > 0 || k.Error != "" {
			t.Errorf("%+v", k)
		}
	}
}

// A table that names map or data where another user can replace them is refused; its base is the
// operator's affair.
func TestTableInDirectoriesOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
	for _, foreign := range []string{"map", "data", "base"} {
		s := newStore(t)
		dir := map[string]string{"map": t.TempDir(), "data": t.TempDir(), "base": t.TempDir()}
		test.Must(t, os.Chown(dir[foreign], nobody, nobody))
		base := write(t, filepath.Join(dir["base"], "b"), make([]byte, 64<<10))
		mapFile := write(t, filepath.Join(dir["map"], "m"), make([]byte, 8<<10))
		data := write(t, filepath.Join(dir["data"], "d"), make([]byte, 64<<10))
		table := "0 128 cow " + base + " 0 " + mapFile + " " + data + " 0"
		_, err := s.Create(ctx, "vm1", CreateOptions{Table: table})
		if foreign == "base" {
			test.Must(t, err)
			// The directory is given away later.
			test.Must(t, os.Chown(dir["data"], nobody, nobody))
			_, err = s.OpenDisk(ctx, "vm1", OpenOptions{})
		} else if text, rerr := os.ReadFile(mapFile); rerr != nil || strings.Trim(string(text),
			"\x00") != "" {
			t.Errorf("%s: the map was written to: %v", foreign, rerr)
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
			"user nobody can lead this process to any file") {
			t.Errorf("%s: %v", foreign, err)
		}
	}
}
