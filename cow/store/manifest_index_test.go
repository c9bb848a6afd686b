package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// indexless is the file system as a version before the index uses it.
type indexless struct{ vfs.OS }

func (indexless) unseen(name string) error {
	if strings.Contains(name+"/", "/"+indexDir+"/") {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

func (u indexless) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := u.unseen(name); err != nil {
		return nil, err
	}
	return u.OS.OpenFile(name, flag, perm)
}

func (u indexless) Mkdir(name string, perm fs.FileMode) error {
	if err := u.unseen(name); err != nil {
		return err
	}
	return u.OS.Mkdir(name, perm)
}

func (u indexless) MkdirAll(name string, perm fs.FileMode) error {
	if err := u.unseen(name); err != nil {
		return err
	}
	return u.OS.MkdirAll(name, perm)
}

// family is a store with the tags golden@a and golden@b and the disks ofa and ofb on them, all with
// different contents. The index knows all of them.
func family(t testing.TB, s *Store) map[string][]byte {
	t.Helper()
	importRaw(t, s, "img", noise(1, imageSize))
	create(t, s, "golden", CreateOptions{From: "img"})
	for i, tag := range []string{"a", "b"} {
		put(t, s, "golden", noise(uint64(10+i), 4096), int64(i)*8192)
		test.Must(t, test.Err(s.Promote(ctx, []string{"golden"}, tag)))
		create(t, s, "of"+tag, CreateOptions{From: "golden@" + tag})
		put(t, s, "of"+tag, noise(uint64(20+i), 4096), 16384)
	}
	create(t, s, "first", CreateOptions{Size: 1 << 20})
	test.Must(t, test.Err(s.Remove(ctx, "first")))
	if n := len(s.readIndex().entries); n != 3 {
		t.Fatalf("the index has %d disks after a removal, expected 3", n)
	}
	contents := map[string][]byte{}
	for _, name := range []string{"golden", "ofa", "ofb"} {
		contents[name] = content(t, s, name)
	}
	return contents
}

// dismantled removes the disks in this order. The remaining disks must keep their content, and at
// the end nothing may be left.
func dismantled(t testing.TB, s *Store, contents map[string][]byte, order ...string) {
	t.Helper()
	for i, name := range order {
		if _, err := s.Remove(ctx, name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
		for _, left := range order[i+1:] {
			if contents[left] != nil && !bytes.Equal(content(t, s, left), contents[left]) {
				t.Errorf("disk %s shows something else after %s was removed", left, name)
			}
		}
	}
	for _, dir := range []string{layersDir, tmpDir, disksDir} {
		if left, err := os.ReadDir(s.path(dir)); err != nil || len(left) > 0 {
			t.Errorf("all disks were removed; in %s there is %v, %v", dir, left, err)
		}
	}
}

// Whatever else changes the store, no layer that a disk needs is removed, and no layer stays that
// no disk needs.
func TestStoreChangedByOthers(t *testing.T) {
	older := func(t *testing.T, s *Store) *Store {
		o := openStore(t, s.Dir())
		o.fs = indexless{}
		return o
	}
	mustNot := func(t *testing.T, err error) {
		t.Helper()
		test.Must(t, err)
	}
	for _, c := range []struct {
		name  string
		do    func(t *testing.T, s *Store)
		order []string
	}{
		{"older clones a tag", func(t *testing.T, s *Store) {
			create(t, older(t, s), "more", CreateOptions{From: "golden@b"})
		}, []string{"golden", "ofb", "more", "ofa"}},
		{"older promotes and clones", func(t *testing.T, s *Store) {
			_, err := older(t, s).Promote(ctx, []string{"ofb"}, "x")
			mustNot(t, err)
			create(t, older(t, s), "more", CreateOptions{From: "ofb@x"})
		}, []string{"ofb", "golden", "more", "ofa"}},
		{"older removes", func(t *testing.T, s *Store) {
			create(t, s, "more", CreateOptions{From: "golden@b"})
			_, err := older(t, s).Remove(ctx, "more")
			mustNot(t, err)
		}, []string{"golden", "ofb", "ofa"}},
		{"older rolls back", func(t *testing.T, s *Store) {
			_, err := older(t, s).Rollback(ctx, Ref{"golden", "a"})
			mustNot(t, err)
		}, []string{"ofb", "ofa", "golden"}},
		{"no index", func(t *testing.T, s *Store) { mustNot(t, os.RemoveAll(s.path(indexDir))) },
			nil},
		{"an index that is cut off", func(t *testing.T, s *Store) {
			mustNot(t, os.Truncate(s.path(indexDir, indexFile), 40))
		}, nil},
		{"an index of zeros", func(t *testing.T, s *Store) {
			mustNot(t, os.WriteFile(s.path(indexDir, indexFile), make([]byte, 500), 0o600))
		}, nil},
		{"an index that is a directory", func(t *testing.T, s *Store) {
			mustNot(t, os.Remove(s.path(indexDir, indexFile)))
			mustNot(t, os.MkdirAll(s.path(indexDir, indexFile, "x"), 0o700))
		}, nil},
		{"an index directory that is a file", func(t *testing.T, s *Store) {
			mustNot(t, os.RemoveAll(s.path(indexDir)))
			mustNot(t, os.WriteFile(s.path(indexDir), []byte("x"), 0o600))
		}, nil},
		{"an index with exchanged layers", func(t *testing.T, s *Store) {
			path := s.path(indexDir, indexFile)
			text, err := os.ReadFile(path)
			mustNot(t, err)
			id := first(s.Disk("golden")).Layers[1].UUID.String()
			mustNot(t, os.WriteFile(path, bytes.ReplaceAll(text, []byte(id),
				[]byte(uuid.NewString())), 0o600))
		}, []string{"golden", "ofb", "ofa"}},
		{"an index of another store", func(t *testing.T, s *Store) {
			other := newStore(t)
			family(t, other)
			text, err := os.ReadFile(other.path(indexDir, indexFile))
			mustNot(t, err)
			// Without the entries about missing disks, which only a user can give up.
			mustNot(t, os.WriteFile(s.path(indexDir, indexFile), text, 0o600))
		}, []string{"golden", "ofb", "ofa"}},
		{"a copy of the store", func(t *testing.T, s *Store) {
			dir := s.Dir() + ".copy"
			mustNot(t, os.CopyFS(dir, os.DirFS(s.Dir())))
			mustNot(t, os.Rename(s.Dir(), s.Dir()+".old"))
			mustNot(t, os.Rename(dir, s.Dir()))
		}, []string{"golden", "ofb", "ofa"}},
		{"a disk taken away and put back", func(t *testing.T, s *Store) {
			away := filepath.Join(t.TempDir(), "ofb")
			mustNot(t, os.Rename(s.path(disksDir, "ofb"), away))
			create(t, s, "more", CreateOptions{Size: 4096})
			_, err := s.Remove(ctx, "more")
			mustNot(t, err)
			_, err = s.Remove(ctx, "golden")
			mustNot(t, err)
			mustNot(t, os.Rename(away, s.path(disksDir, "ofb")))
		}, []string{"ofa", "ofb"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			contents := family(t, s)
			c.do(t, s)
			if c.order == nil {
				c.order = []string{"golden", "ofa", "ofb"}
			}
			for _, m := range first(s.Disks()) {
				contents[m.Name] = content(t, s, m.Name)
			}
			dismantled(t, s, contents, c.order...)
		})
	}
}

// An older version has added a new head that no manifest names yet when another command deletes. It
// names the head later, and no directory's time shows this.
func TestRemovalDuringAnOlderPromotion(t *testing.T) {
	s := newStore(t)
	contents := family(t, s)
	older := openStore(t, s.Dir())
	older.fs = indexless{}
	lock, err := older.LockDisk("ofb")
	test.Must(t, err)
	p, err := older.PreparePromotion(ctx, []*Manifest{first(s.Disk("ofb"))}, "x")
	test.Must(t, err)
	create(t, s, "more", CreateOptions{Size: 4096})
	test.Must(t, test.Err(s.Remove(ctx, "more")))
	for _, h := range p.Heads() {
		test.Must(t, h.Close())
	}
	test.Must(t, p.Commit())
	p.Close(true)
	test.Must(t, lock.Unlock())
	create(t, s, "clone", CreateOptions{From: "ofb@x"})
	dismantled(t, s, contents, "clone", "golden", "ofb", "ofa")
}

// Each change is killed at each of its steps. Then the disks are removed, which relies on the
// remains of the killed change.
func TestRemovalsAfterKills(t *testing.T) {
	for _, op := range []struct {
		name  string
		do    func(s *Store) error
		order []string
	}{
		{"create", func(s *Store) error {
			_, err := s.Create(ctx, "new", CreateOptions{From: "golden@b"})
			return err
		}, []string{"golden", "ofb", "new", "ofa"}},
		{"promote", func(s *Store) error {
			_, err := s.Promote(ctx, []string{"ofb", "golden"}, "u")
			return err
		}, []string{"golden", "ofa", "ofb"}},
		{"rollback", func(s *Store) error {
			_, err := s.Rollback(ctx, Ref{"golden", "a"})
			return err
		}, []string{"ofb", "golden", "ofa"}},
		{"remove", func(s *Store) error { _, err := s.Remove(ctx, "golden"); return err },
			[]string{"ofa", "golden", "ofb"}},
	} {
		t.Run(op.name, func(t *testing.T) {
			killed := 0
			for n := 1; ; n++ {
				s := newStore(t)
				s.fs = withoutSync()
				contents := family(t, s)
				m := faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n})
				s.fs = m
				err := op.do(s)
				m.CloseFiles()
				if err != nil && !m.Killed() {
					t.Fatal(err)
				}
				s.fs = withoutSync()
				if op.name == "rollback" { // one or the other
					delete(contents, "golden")
				}
				there := slices.DeleteFunc(slices.Clone(op.order), func(name string) bool {
					_, err := os.Stat(s.path(disksDir, name))
					return err != nil
				})
				dismantled(t, s, contents, there...)
				if t.Failed() {
					t.Fatalf("killed at change %d: %s", n, last(m))
				}
				if !m.Killed() {
					break
				}
				killed++
			}
			t.Logf("killed at each of %d changes", killed)
			if killed == 0 {
				t.Error("the test misses its subject")
			}
		})
	}
}

// An unreadable manifest keeps all layers, whatever the index knows of it: it may have changed
// since. Other disks can be removed, and commands do not become slower over time.
func TestDamagedManifestKeepsItsLayers(t *testing.T) {
	for _, damage := range []struct {
		name   string
		header bool // a layer's header is damaged too
		do     func(path string) error
	}{
		{"cut off", false, func(path string) error { return os.Truncate(path, 100) }},
		{"gone", false, os.Remove},
		{"a directory", false, func(path string) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o755))
		}},
		{"of a newer version", false, func(path string) error {
			return os.WriteFile(path, []byte(`{"version": 2}`), 0o644)
		}},
		{"empty, and a header", true, func(path string) error { return os.Truncate(path, 0) }},
	} {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, index knows it %v", damage.name, known), func(t *testing.T) {
				var said bytes.Buffer
				s, c := countingStore(t)
				s.log = slog.New(slog.NewTextHandler(&said,
					&slog.HandlerOptions{Level: slog.LevelWarn}))
				contents := family(t, s)
				path := s.path(disksDir, "ofb", diskFile)
				saved := first(os.ReadFile(path))
				m := first(s.Disk("ofb"))
				header := s.paths(m.Head()).Map
				savedMap := first(os.ReadFile(header))
				test.Must(t, damage.do(path))
				if damage.header {
					test.Must(t, os.WriteFile(header, make([]byte, len(savedMap)), 0o600))
				}
				if !known {
					test.Must(t, os.RemoveAll(s.path(indexDir)))
				}
				var costs []int64
				for i := range 6 {
					before := c.calls.Load()
					create(t, s, fmt.Sprint("c", i), CreateOptions{From: "golden@b"})
					test.Must(t, test.Err(s.Promote(ctx, []string{fmt.Sprint("c", i)}, "t")))
					costs = append(costs, c.calls.Load()-before)
				}
				if costs = costs[1:]; slices.Max(costs) != slices.Min(costs) {
					t.Errorf("calls of one command after the other: %v", costs)
				}
				layers := len(entries(t, s.path(layersDir)))
				for i := range 6 {
					said.Reset()
					test.Must(t, test.Err(s.Remove(ctx, fmt.Sprint("c", i))))
					if n := strings.Count(said.String(), "\n"); n != 1 {
						t.Errorf("a removal says %d lines:\n%s", n, said.String())
					}
				}
				for _, name := range []string{"golden", "ofa"} {
					if _, err := s.Remove(ctx, name); err != nil {
						t.Error(err)
					}
				}
				if left := entries(t, s.path(tmpDir)); len(left) > 0 {
					t.Errorf("in tmp: %v", left)
				}
				if left := entries(t, s.path(layersDir)); len(left) != layers {
					t.Errorf("%d layers are left, expected %d", len(left), layers)
				}
				test.Must(t, errors.Join(os.RemoveAll(path), os.WriteFile(path, saved, 0o644),
					os.WriteFile(header, savedMap, 0o600)))
				if !bytes.Equal(content(t, s, "ofb"), contents["ofb"]) {
					t.Error("the damaged disk shows something else")
				}
				check(t, s, CheckOptions{Repair: true, Prune: true})
				dismantled(t, s, contents, "ofb")
			})
		}
	}
}

// nothingNew is a file system that cannot make any new file.
type nothingNew struct{ vfs.OS }

func (n nothingNew) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if _, err := n.OS.Stat(name); err != nil && flag&os.O_CREATE != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOSPC}
	}
	return n.OS.OpenFile(name, flag, perm)
}

func (nothingNew) Mkdir(name string, _ fs.FileMode) error {
	return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOSPC}
}

func (n nothingNew) MkdirAll(name string, perm fs.FileMode) error {
	if _, err := n.OS.Stat(name); err == nil {
		return nil
	}
	return n.Mkdir(name, perm)
}

func (nothingNew) WriteFileAtomic(name string, _ []byte, _ fs.FileMode) error {
	return &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
}

// A command that frees space needs none, with an index and without one.
func TestRemoveWithoutRoom(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(s *Store) error
	}{
		{"an index", func(*Store) error { return nil }},
		{"no index", func(s *Store) error { return os.RemoveAll(s.path(indexDir)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			contents := family(t, s)
			test.Must(t, c.do(s))
			s.fs = nothingNew{}
			dismantled(t, s, contents, "golden", "ofa", "ofb")
			if _, err := s.Remove(ctx, "img"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A copied manifest names the layers of another one, including heads.
func TestCopiedManifestKeepsLayers(t *testing.T) {
	for _, step := range []string{"rm copy", "rm original", "rollback copy", "promote copy, rm it",
		"promote original, rm copy", "promote copy, rm original", "another command, rm copy"} {
		t.Run(step, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "a", CreateOptions{Size: 1 << 20})
			must := func(err error) {
				t.Helper()
				test.Must(t, err)
			}
			promote := func(name, tag string) {
				t.Helper()
				_, err := s.Promote(ctx, []string{name}, tag)
				must(err)
			}
			remove := func(name string) {
				t.Helper()
				_, err := s.Remove(ctx, name)
				must(err)
			}
			promote("a", "t1")
			promote("a", "t2")
			m, err := s.Disk("a")
			must(err)
			m.Name = "b"
			must(os.MkdirAll(s.path(disksDir, "b"), 0o700))
			must(s.writeDocument(s.path(disksDir, "b", diskFile), m))
			stays := "a"
			switch step {
			case "rm copy":
				remove("b")
			case "rm original":
				remove("a")
				stays = "b"
			case "rollback copy":
				_, err := s.Rollback(ctx, Ref{Name: "b", Tag: "t1"})
				must(err)
			case "promote copy, rm it":
				promote("b", "t3")
				remove("b")
			case "promote original, rm copy":
				promote("a", "t3")
				remove("b")
			case "promote copy, rm original":
				promote("b", "t3")
				remove("a")
				stays = "b"
			case "another command, rm copy":
				create(t, s, "c", CreateOptions{Size: 1 << 20})
				remove("c")
				remove("b")
			}
			kept, err := s.Disk(stays)
			must(err)
			for i := range kept.Layers {
				_, err := os.Stat(s.paths(&kept.Layers[i]).Map)
				must(err)
			}
			if step != "promote copy, rm it" { // which has sealed the other disk's head
				openDisk(t, s, stays).Close()
			}
		})
	}
}
