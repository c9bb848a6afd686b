package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cowblk/cow/finding"
	"cowblk/internal/test"
)

const someUUID = "0b6e0b0e-1111-4111-8111-0123456789ab"

// state returns the names, modes and contents of a tree.
func state(t *testing.T, dir string) (all []string) {
	t.Helper()
	test.Must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%s %v", strings.TrimPrefix(path, dir), fi.Mode())
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		all = append(all, text)
		return nil
	}))
	return all
}

// plant makes files that contain text, or what follows a = in the name, and directories, whose
// names end with a slash.
func plant(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		name, text, given := strings.Cut(name, "=")
		if !given {
			text = "precious"
		}
		path := filepath.Join(dir, name)
		test.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if strings.HasSuffix(name, "/") {
			test.Must(t, os.MkdirAll(path, 0o755))
			continue
		}
		test.Must(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

// Nothing is changed in a directory that is no store, even if it has names that a store has.
func TestNothingChangesInForeignDirectories(t *testing.T) {
	for name, files := range map[string][]string{
		"project with refs":   {"refs/paper.bib", "refs/pdf/1.pdf", ".git/config"},
		"refs alone":          {"refs/paper.bib"},
		"tmp of UUIDs":        {"tmp/" + someUUID + "/f"},
		"tmp of empty UUIDs":  {"tmp/" + someUUID + "/"},
		"tmp of removals":     {"tmp/rm-" + someUUID + "/f"},
		"tmp with a lock":     {"tmp/" + someUUID + "/lock"},
		"a lock and a tmp":    {"lock", "tmp/" + someUUID + "/f"},
		"a lock and removals": {"lock", "tmp/rm-" + someUUID + "/disk.json"},
		"a lock, data in tmp": {"lock", "tmp/" + someUUID + "/data"},
		"a lock, locked files": {"lock", "tmp/" + someUUID + "/lock",
			"tmp/" + someUUID + "/f"},
		"a lock, a layer's name":   {"lock", "tmp/" + someUUID + "/layer/f"},
		"a lock and refs":          {"lock", "refs/paper.bib"},
		"a lock, refs and sources": {"lock", "refs/f", "src/f", "tmp/" + someUUID + "/f"},
		"a lock and a reserve":     {"lock", "reserve/notes"},
		"like dpkg": {"lock", "lock-frontend", "status", "info/x.list", "updates/",
			"tmp.ci/"},
		"like apt": {"lock", "partial/", "auxfiles/", "deb_Packages"},
		"a lock and layers": {"lock", "layers/" + someUUID + "/map", "layers/" + someUUID +
			"/data"},
		"a lock and disks":          {"lock", "disks/web/disk.json", "disks/web/data"},
		"a lock and images":         {"lock", "images/photo/image.json"},
		"disks, unreadable":         {"disks/web/disk.json"},
		"home of dot files":         {".profile", ".ssh/id"},
		"home with an empty config": {".config/"},
		"run with a PID":            {"run/daemon.pid"},
		"a lock with text":          {"lock"},
		"a lock with text, a run":   {"lock", "run/daemon.pid"},
		"a lock with text, a store": {"lock", "disks/", "layers/", "tmp/"},
		"an empty lock and a run":   {"lock=", "run/daemon.pid"},
		"an empty lock, tmp, run":   {"lock=", "tmp/", "run/daemon.pid"},
		"an empty lock, an index":   {"lock=", "index/disks"},
		"an empty lock, a new one":  {"lock=", "index/disks.new"},
		"an empty lock, a reserve":  {"lock=", "reserve/00", "reserve/23"},
		"a torn lock, a reserve":    {"lock=cowblk st", "reserve/23", "disks/", "layers/"},
		"a lock of zeros, a run":    {"lock=\x00\x00", "run/f"},
		"a lock of JSON":            {"lock={\"pid\":1}"},
		"a lock like ours":          {"lock=cowblk" + " stores\n"},
		"lock is a directory":       {"lock/"},
		"lock is a directory, more": {"lock/f", "tmp/" + someUUID + "/f"},
		"index":                     {"index"},
		"index without lock":        {"index/f"},
		"lost+found and a file":     {"lost+found/", "file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			plant(t, dir, files...)
			test.Must(t, os.Chmod(dir, 0o755))
			before := state(t, dir)
			image := write(t, filepath.Join(t.TempDir(), "image"), make([]byte, 512))
			for what, f := range map[string]func(s *Store) error{
				"create": func(s *Store) error {
					_, err := s.Create(ctx, "x", CreateOptions{Size: 1 << 20})
					return err
				},
				"import": func(s *Store) error {
					_, err := s.Import(ctx, image, "img", ImportOptions{})
					return err
				},
				"rm": func(s *Store) error { _, err := s.Remove(ctx, "web"); return err },
				"rm image": func(s *Store) error {
					_, err := s.Remove(ctx, "photo")
					return err
				},
				"rm --damaged": func(s *Store) error {
					_, err := s.RemoveDamaged(ctx, "web")
					return err
				},
				"open": func(s *Store) error {
					_, err := s.OpenDisk(ctx, "web", OpenOptions{Serve: true})
					return err
				},
				"promote": func(s *Store) error {
					_, err := s.Promote(ctx, []string{"web"}, "t")
					return err
				},
				"rollback": func(s *Store) error {
					_, err := s.Rollback(ctx, Ref{"web", "t"})
					return err
				},
				"check": func(s *Store) error {
					_, err := s.Check(ctx, CheckOptions{})
					return err
				},
				"check --repair": func(s *Store) error {
					_, err := s.Check(ctx, CheckOptions{Repair: true, Prune: true})
					return err
				},
			} {
				s, err := Open(dir, Options{LockTimeout: time.Second})
				test.Must(t, err)
				err = f(s)
				if what == "create" && (!errors.Is(err, ErrInvalid) ||
					!strings.Contains(err.Error(), "empty directory")) {
					t.Errorf("%s: %v", what, err)
				}
				if after := state(t, dir); !slices.Equal(after, before) {
					t.Fatalf("%s changed\n%s\nto\n%s", what, strings.Join(before, "\n"),
						strings.Join(after, "\n"))
				}
			}
		})
	}
}

// Foreign files in a store stay. Files that only resemble work of a dead process are reported.
func TestForeignFilesInAStore(t *testing.T) {
	for name, files := range map[string][]string{
		"notes":            {"README.txt", "notes/vm1.txt", ".hidden"},
		"tmp without lock": {"tmp/" + someUUID + "/f"},
		"tmp with a lock":  {"tmp/" + someUUID + "/f", "tmp/" + someUUID + "/lock"},
		"removal":          {"tmp/rm-" + someUUID + "/f"},
		"data":             {"tmp/" + someUUID + "/data"},
		"removed data":     {"tmp/rm-" + someUUID + "/data", "tmp/rm-" + someUUID + "/disk.json"},
		"a disk":           {"tmp/" + someUUID + "/disk/thesis"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			plant(t, s.Dir(), files...)
			again, err := Open(s.Dir(), Options{})
			test.Must(t, err)
			create(t, again, "vm2", CreateOptions{Size: 1 << 20})
			if _, err := again.Promote(ctx, []string{"vm2"}, "t"); err != nil {
				t.Error(err)
			}
			if _, err := again.Rollback(ctx, Ref{"vm2", "t"}); err != nil {
				t.Error(err)
			}
			r, err := again.Check(ctx, CheckOptions{Repair: true, Prune: true})
			test.Must(t, err)
			told := false
			for _, k := range r.Reports {
				for _, p := range k.Problems {
					told = told || strings.HasPrefix(s.path(files[0]), p.File+"/") &&
						p.Status == finding.Left
				}
			}
			if told != strings.HasPrefix(files[0], "tmp/") {
				t.Errorf("check: told %v: %+v", told, r.Reports)
			}
			if _, err := again.Remove(ctx, "vm1"); err != nil {
				t.Error(err)
			}
			for _, file := range files {
				path := s.path(file)
				data, err := os.ReadFile(path)
				if err != nil || string(data) != "precious" {
					t.Errorf("%s: %q, %v", file, data, err)
				}
				if fi, err := os.Stat(path); err == nil && fi.Mode().Perm() != 0o644 {
					t.Errorf("%s: mode %v", file, fi.Mode())
				}
			}
		})
	}
}

// Names that cowblk uses elsewhere are foreign in the directory of a disk, an image or a
// transaction that has no such files: a removal leaves them in tmp/.
func TestForeignFilesWithKnownNames(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	if _, err := s.Promote(ctx, []string{"vm1"}, "t"); err != nil {
		t.Fatal(err)
	}
	importRaw(t, s, "img", noise(1, 1<<16))
	disk, image := "disks/vm1/", "images/img/"
	files := []string{
		disk + "data", disk + "map", disk + "checksums", disk + "image.json", disk + "journal.json",
		disk + "commit.json", disk + "link",
		disk + "0.after", disk + "disk.json.damaged/notes", disk + "layer/data", image + "map",
		image + "disk.json", "tmp/" + someUUID + "/data",
	}
	plant(t, s.Dir(), files...)
	test.Must(t, os.WriteFile(s.path("tmp", someUUID, lockFile), nil, 0o600))
	plant(t, s.Dir(), disk+someUUID+"/data", image+someUUID+"/data")
	for _, name := range []string{"vm1", "img"} {
		if _, err := s.Remove(ctx, name); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: with a directory that may be a layer: %v", name, err)
		}
	}
	test.Must(t, errors.Join(os.RemoveAll(s.path(disk, someUUID)),
		os.RemoveAll(s.path(image, someUUID))))
	if _, err := s.Remove(ctx, "vm1"); err != nil {
		t.Error(err)
	}
	if _, err := s.Remove(ctx, "img"); err != nil {
		t.Error(err)
	}
	create(t, s, "vm2", CreateOptions{Size: 1 << 20}) // cleans up
	if left := entries(t, s.path(layersDir)); len(left) != 1 {
		t.Errorf("layers: %v", left)
	}
	found := 0
	var all []string
	test.Must(t, filepath.WalkDir(s.Dir(), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if data, _ := os.ReadFile(path); string(data) == "precious" {
				found++
				all = append(all, path)
			}
		}
		return err
	}))
	if found != len(files) {
		t.Errorf("%d of %d files are left: %v", found, len(files), all)
	}
}

// What a removal has left stays at later commands, also if it is a whole image or layer by itself;
// the data of an image without a description goes.
func TestKeptFilesStay(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct{ from, remove string }{
		"an image in a disk": {"images/img", "vm1"}, "a layer in a disk": {"layers/*", "vm1"},
		"a map in an image": {"layers/*", "img"},
	} {
		s := newStore(t)
		create(t, s, "vm1", CreateOptions{Size: 1 << 20})
		importRaw(t, s, "img", noise(1, 1<<16))
		to := s.path(disksDir, "vm1")
		if c.remove == "img" {
			to = s.path(imagesDir, "img")
		}
		copied := map[string]bool{}
		for _, from := range first(filepath.Glob(s.path(c.from, "*"))) {
			name := filepath.Base(from)
			if _, err := os.Stat(filepath.Join(to, name)); err == nil {
				continue // it has one of its own
			}
			test.Must(t, os.WriteFile(filepath.Join(to, name), first(os.ReadFile(from)), 0o600))
			copied[name] = true
		}
		if _, err := s.Remove(ctx, c.remove); err != nil {
			t.Fatal(err)
		}
		create(t, s, "vm2", CreateOptions{Size: 1 << 20})
		check(t, s, CheckOptions{Repair: true, Prune: true})
		left := first(filepath.Glob(s.path(tmpDir, keptPrefix+"*", "*")))
		if len(left) != len(copied) || len(copied) == 0 {
			t.Errorf("%s: left %v, expected %v", name, left, copied)
		}
	}
	for name, spoil := range map[string]func(path string) error{
		"missing": os.Remove,
		"damaged": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		s := newStore(t)
		importRaw(t, s, "img", noise(1, 1<<16))
		test.Must(t, spoil(s.path(imagesDir, "img", imageFile)))
		if _, err := s.Remove(ctx, "img"); err != nil {
			t.Fatal(err)
		}
		if left := entries(t, s.path(tmpDir)); len(left) > 0 {
			t.Errorf("%s: %v", name, left)
		}
	}
}

// A store in every state is a store: begun, emptied, of test versions, damaged, without its lock
// file after a power cut.
func TestStoresInAllStates(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, s *Store){
		"whole": func(*testing.T, *Store) {},
		"emptied": func(t *testing.T, s *Store) {
			test.Must(t, test.Err(s.Remove(ctx, "vm1")))
		},
		"emptied, with a note": func(t *testing.T, s *Store) {
			test.Must(t, test.Err(s.Remove(ctx, "vm1")))
			plant(t, s.Dir(), "README.txt")
		},
		"empty lock file of an earlier version": func(t *testing.T, s *Store) {
			test.Must(t, os.Truncate(s.path(lockFile), 0))
		},
		"empty lock file, and a note": func(t *testing.T, s *Store) {
			test.Must(t, os.Truncate(s.path(lockFile), 0))
			plant(t, s.Dir(), "README.txt")
		},
		"a lock of zeros after a power cut": func(t *testing.T, s *Store) {
			test.Must(t, os.WriteFile(s.path(lockFile), make([]byte, len(lockMagic)), 0o600))
		},
		"emptied, torn lock, reserve, index and run": func(t *testing.T, s *Store) {
			test.Must(t, test.Err(s.Remove(ctx, "vm1")))
			test.Must(t, os.Truncate(s.path(lockFile), 5))
			plant(t, s.Dir(), "run/vm1.pid")
		},
		"foreign content in the lock of a store": func(t *testing.T, s *Store) {
			plant(t, s.Dir(), "lock=1234")
		},
		"no lock": func(t *testing.T, s *Store) {
			test.Must(t, os.Remove(s.path(lockFile)))
		},
		"begun": func(t *testing.T, s *Store) {
			test.Must(t, os.Truncate(s.path(lockFile), 0))
			for _, dir := range []string{disksDir, layersDir, indexDir, reserveDir} {
				test.Must(t, os.RemoveAll(s.path(dir)))
			}
			plant(t, s.Dir(), "tmp/"+someUUID+"/lock", "tmp/"+someUUID+"/image/data",
				"tmp/"+someUUID+"/image/image.json.new")
		},
		"begun, killed before the lock file": func(t *testing.T, s *Store) {
			test.Must(t, os.Truncate(s.path(lockFile), 0))
			for _, dir := range []string{disksDir, layersDir, indexDir, reserveDir} {
				test.Must(t, os.RemoveAll(s.path(dir)))
			}
			plant(t, s.Dir(), "tmp/"+someUUID+"/")
		},
		"a damaged manifest": func(t *testing.T, s *Store) {
			test.Must(t, os.Truncate(s.path(lockFile), 0))
			test.Must(t, os.WriteFile(s.path(disksDir, "vm1", diskFile), []byte("{"), 0o600))
		},
		"damaged layers": func(t *testing.T, s *Store) {
			test.Must(t, os.Truncate(s.path(lockFile), 0))
			for _, id := range entries(t, s.path(layersDir)) {
				test.Must(t, os.Truncate(s.path(layersDir, id, mapFile), 0))
			}
		},
		"links and lost+found": func(t *testing.T, s *Store) {
			elsewhere := filepath.Join(t.TempDir(), "layers")
			test.Must(t, os.Rename(s.path(layersDir), elsewhere))
			test.Must(t, os.Symlink(elsewhere, s.path(layersDir)))
			plant(t, s.Dir(), "lost+found/", "index/x")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			change(t, s)
			again, err := Open(s.Dir(), Options{})
			test.Must(t, err)
			create(t, again, "vm2", CreateOptions{Size: 1 << 20})
			if left := entries(t, s.path(tmpDir)); len(left) != 0 {
				t.Errorf("left in tmp: %v", left)
			}
			if _, err := again.Remove(ctx, "vm2"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Foreign files in the places of the index and the reserve are neither deleted nor overwritten, and
// what symbolic links there lead to stays too.
func TestForeignIndexAndReserve(t *testing.T) {
	for _, name := range []string{"index/disks", "index/disks.new", "reserve/23", "reserve/00"} {
		for _, kind := range []string{"file", "link", "link to an empty file", "FIFO"} {
			t.Run(name+" is a "+kind, func(t *testing.T) {
				s := newStore(t)
				create(t, s, "vm1", CreateOptions{Size: 1 << 20})
				path := s.path(name)
				test.Must(t, os.RemoveAll(path))
				text, target := "precious", path
				switch kind {
				case "link to an empty file":
					text = ""
					fallthrough
				case "link":
					target = filepath.Join(t.TempDir(), "f")
					test.Must(t, os.Symlink(target, path))
				case "FIFO":
					test.Must(t, syscall.Mkfifo(path, 0o600))
				}
				if kind != "FIFO" {
					test.Must(t, os.WriteFile(target, []byte(text), 0o600))
				}
				before, err := os.Lstat(path)
				test.Must(t, err)
				again, err := Open(s.Dir(), Options{})
				test.Must(t, err)
				create(t, again, "vm2", CreateOptions{Size: 1 << 20})
				test.Must(t, test.Err(again.Promote(ctx, []string{"vm2"}, "t")))
				_, err = again.Remove(ctx, "vm1")
				test.Must(t, err)
				for again.releaseReserve(syscall.ENOSPC, 0) {
				}
				after, err := os.Lstat(path)
				test.Must(t, err)
				if !os.SameFile(before, after) {
					t.Error("it was replaced")
				}
				if kind == "FIFO" {
					return
				}
				if now, err := os.ReadFile(target); err != nil || string(now) != text {
					t.Errorf("%q, %v", now, err)
				}
			})
		}
	}
}
