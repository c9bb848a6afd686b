package store

import (
	"bytes"
	"context"
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
	"time"

	"github.com/google/uuid"

	"cowblk/cow/cowtest"
	"cowblk/cow/vfs"
)

// unreferenced is the file system as a version before references uses it.
type unreferenced struct{ vfs.OS }

func (unreferenced) unseen(name string) error {
	if strings.Contains(name+"/", "/"+refsDir+"/") {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

func (u unreferenced) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := u.unseen(name); err != nil {
		return nil, err
	}
	return u.OS.OpenFile(name, flag, perm)
}

func (u unreferenced) Mkdir(name string, perm fs.FileMode) error {
	if err := u.unseen(name); err != nil {
		return err
	}
	return u.OS.Mkdir(name, perm)
}

func (u unreferenced) MkdirAll(name string, perm fs.FileMode) error {
	if err := u.unseen(name); err != nil {
		return err
	}
	return u.OS.MkdirAll(name, perm)
}

func (unreferenced) SetModTime(string, time.Time) error { return fs.ErrPermission }

// family is a store with the tags golden@a and golden@b, and the disks ofa and ofb on them, all of different contents.
// Its references hold.
func family(t testing.TB, s *Store) map[string][]byte {
	t.Helper()
	ctx := context.Background()
	importRaw(t, s, "img", noise(1, imageSize))
	create(t, s, "golden", CreateOptions{From: "img"})
	for i, tag := range []string{"a", "b"} {
		put(t, s, "golden", noise(uint64(10+i), 4096), int64(i)*8192)
		if _, err := s.Promote(ctx, []string{"golden"}, tag); err != nil {
			t.Fatal(err)
		}
		create(t, s, "of"+tag, CreateOptions{From: "golden@" + tag})
		put(t, s, "of"+tag, noise(uint64(20+i), 4096), 16384)
	}
	create(t, s, "first", CreateOptions{Size: 1 << 20})
	if _, err := s.Remove(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	if s.validRefs() == nil {
		t.Fatal("the references do not hold after a removal")
	}
	contents := map[string][]byte{}
	for _, name := range []string{"golden", "ofa", "ofb"} {
		contents[name] = content(t, s, name)
	}
	return contents
}

// dismantled removes the disks in this order and wants those that are left to stay what they were, and nothing to be left
// at the end.
func dismantled(t testing.TB, s *Store, contents map[string][]byte, order ...string) {
	t.Helper()
	for i, name := range order {
		if _, err := s.Remove(context.Background(), name); err != nil {
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

// Whatever changes the store besides this version, no layer goes that a disk needs, and none stays that no disk needs.
func TestReferencesOfAnotherHand(t *testing.T) {
	ctx := context.Background()
	older := func(t *testing.T, s *Store) *Store {
		o := openStore(t, s.Dir())
		o.fs = unreferenced{}
		return o
	}
	mustNot := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
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
		{"no references", func(t *testing.T, s *Store) { mustNot(t, os.RemoveAll(s.path(refsDir))) }, nil},
		{"no stamp", func(t *testing.T, s *Store) { mustNot(t, os.Remove(s.path(refsDir, stampFile))) }, nil},
		{"a stamp that is cut off", func(t *testing.T, s *Store) { mustNot(t, os.Truncate(s.path(refsDir, stampFile), 40)) }, nil},
		{"a stamp of another boot", func(t *testing.T, s *Store) {
			path := s.path(refsDir, stampFile)
			text, err := os.ReadFile(path)
			mustNot(t, err)
			boot, _ := vfs.OS{}.Boot()
			mustNot(t, os.WriteFile(path, bytes.Replace(text, []byte(boot), []byte(uuid.NewString()), 1), 0o600))
			// What such a power cut has lost:
			mustNot(t, os.RemoveAll(s.path(refsDir, first(s.Disk("ofb")).Layers[1].UUID.String())))
		}, []string{"golden", "ofb", "ofa"}},
		{"a copy of the store", func(t *testing.T, s *Store) {
			// Other directories with the same times: their references were copied before they were complete.
			dir := s.Dir() + ".copy"
			mustNot(t, os.CopyFS(dir, os.DirFS(s.Dir())))
			for _, d := range []string{layersDir, disksDir} {
				st, err := os.Stat(s.path(d))
				mustNot(t, err)
				mustNot(t, os.Chtimes(filepath.Join(dir, d), time.Time{}, st.ModTime()))
			}
			mustNot(t, os.RemoveAll(filepath.Join(dir, refsDir, first(s.Disk("ofb")).Layers[1].UUID.String())))
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
		{"a rubbish reference", func(t *testing.T, s *Store) {
			mustNot(t, os.MkdirAll(s.path(refsDir, "rubbish", "more"), 0o700))
		}, nil},
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

// An older version has put a new head among the layers and not yet named it when references are made anew. It names it
// afterwards, and nothing in the two directories shows that.
func TestReferencesDuringAnOlderPromotion(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	contents := family(t, s)
	older := openStore(t, s.Dir())
	older.fs = unreferenced{}
	lock, err := older.LockDisk("ofb")
	if err != nil {
		t.Fatal(err)
	}
	p, err := older.PreparePromotion(ctx, []*Manifest{first(s.Disk("ofb"))}, "x")
	if err != nil {
		t.Fatal(err)
	}
	create(t, s, "more", CreateOptions{Size: 4096})
	if _, err := s.Remove(ctx, "more"); err != nil {
		t.Fatal(err)
	}
	if s.validRefs() == nil {
		t.Fatal("the references do not hold")
	}
	for _, h := range p.Heads() {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	p.Close(true)
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if s.validRefs() == nil {
		t.Fatal("the case is another one: the references do not hold any more")
	}
	create(t, s, "clone", CreateOptions{From: "ofb@x"})
	dismantled(t, s, contents, "clone", "golden", "ofb", "ofa")
}

// Each change is killed at each of its steps. Then the disks are removed, which relies on what the killed one has left.
func TestReferencesAfterKills(t *testing.T) {
	ctx := context.Background()
	for _, op := range []struct {
		name  string
		do    func(s *Store) error
		order []string
	}{
		{"create", func(s *Store) error { _, err := s.Create(ctx, "new", CreateOptions{From: "golden@b"}); return err }, []string{"golden", "ofb", "new", "ofa"}},
		{"promote", func(s *Store) error { _, err := s.Promote(ctx, []string{"ofb", "golden"}, "u"); return err }, []string{"golden", "ofa", "ofb"}},
		{"rollback", func(s *Store) error { _, err := s.Rollback(ctx, Ref{"golden", "a"}); return err }, []string{"ofb", "golden", "ofa"}},
		{"remove", func(s *Store) error { _, err := s.Remove(ctx, "golden"); return err }, []string{"ofa", "golden", "ofb"}},
	} {
		t.Run(op.name, func(t *testing.T) {
			killed, held := 0, 0
			for n := 1; ; n++ {
				s := newStore(t)
				s.fs = &cowtest.KillFS{FS: vfs.OS{}} // immortal, and does not sync
				contents := family(t, s)
				m := &cowtest.KillFS{FS: vfs.OS{}, KillAt: n}
				s.fs = m
				err := op.do(s)
				m.CloseFiles()
				if err != nil && !m.Killed() {
					t.Fatal(err)
				}
				s.fs = &cowtest.KillFS{FS: vfs.OS{}}
				if s.validRefs() != nil {
					held++
				}
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
			t.Logf("killed at each of %d changes; the references held after %d", killed, held)
			if held == 0 || held > killed {
				t.Error("the test misses its subject")
			}
		})
	}
}

// A manifest that cannot be read keeps what it may name, and nothing else: other disks go, with their layers, commands
// do not become slower with each other, and it is said once.
func TestDamagedManifestKeepsItsLayers(t *testing.T) {
	ctx := context.Background()
	for _, damage := range []struct {
		name  string
		layer bool // a layer's header too
		holds bool // the references are those from before
		do    func(path string) error
	}{
		{"cut off", false, false, func(path string) error { return os.Truncate(path, 100) }},
		{"cut off, references hold", false, true, func(path string) error { return os.Truncate(path, 100) }},
		{"gone", false, false, os.Remove},
		{"a directory", false, false, func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }},
		{"of a newer version", false, false, func(path string) error { return os.WriteFile(path, []byte(`{"version": 2}`), 0o644) }},
		{"and a header", true, false, func(path string) error { return os.Truncate(path, 0) }},
		{"and a header, references hold", true, true, func(path string) error { return os.Truncate(path, 0) }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			var said bytes.Buffer
			s, c := countingStore(t)
			s.log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
			contents := family(t, s)
			path := s.path(disksDir, "ofb", diskFile)
			saved := first(os.ReadFile(path))
			m := first(s.Disk("ofb"))
			header := s.paths(m.Head()).Map
			savedMap := first(os.ReadFile(header))
			if err := damage.do(path); err != nil {
				t.Fatal(err)
			}
			if damage.layer {
				if err := os.WriteFile(header, make([]byte, len(savedMap)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			times := 0
			if !damage.holds {
				times = 1
				if err := os.RemoveAll(s.path(refsDir)); err != nil {
					t.Fatal(err)
				}
			}
			var costs []int64
			for i := range 6 {
				before := c.calls.Load()
				create(t, s, fmt.Sprint("c", i), CreateOptions{From: "golden@b"})
				if _, err := s.Promote(ctx, []string{fmt.Sprint("c", i)}, "t"); err != nil {
					t.Fatal(err)
				}
				costs = append(costs, c.calls.Load()-before)
			}
			if costs = costs[1:]; slices.Max(costs) != slices.Min(costs) { // the first makes the references
				t.Errorf("calls of one command after the other: %v", costs)
			}
			costs = nil
			for i := range 6 {
				before := c.calls.Load()
				if _, err := s.Remove(ctx, fmt.Sprint("c", i)); err != nil {
					t.Fatal(err)
				}
				costs = append(costs, c.calls.Load()-before)
			}
			if costs = costs[1:]; slices.Max(costs) != slices.Min(costs) {
				t.Errorf("calls of one removal after the other: %v", costs)
			}
			if n := strings.Count(said.String(), "manifest cannot be read"); n != times {
				t.Errorf("said %d times:\n%s", n, said.String())
			}
			for _, name := range []string{"golden", "ofa"} {
				if _, err := s.Remove(ctx, name); err != nil {
					t.Error(err)
				}
			}
			if left, _ := os.ReadDir(s.path(tmpDir)); len(left) > 0 {
				t.Errorf("in tmp: %v", left)
			}
			if layers, _ := os.ReadDir(s.path(layersDir)); (!damage.layer || damage.holds) && len(layers) != len(m.Layers) {
				t.Errorf("%d layers are left, the damaged disk has %d", len(layers), len(m.Layers))
			}
			if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, saved, 0o644), os.WriteFile(header, savedMap, 0o600)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(content(t, s, "ofb"), contents["ofb"]) {
				t.Error("the damaged disk shows something else")
			}
			if damage.layer && !damage.holds {
				return // what was kept for it is for check to show
			}
			dismantled(t, s, contents, "ofb")
		})
	}
}

// nothingNew is a file system on which nothing new can be made.
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

// What gives space back needs none, whether references hold or have to be made.
func TestRemoveWithoutRoom(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(s *Store) error
	}{
		{"references hold", func(*Store) error { return nil }},
		{"no stamp", func(s *Store) error { return os.Remove(s.path(refsDir, stampFile)) }},
		{"no references", func(s *Store) error { return os.RemoveAll(s.path(refsDir)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			contents := family(t, s)
			if err := c.do(s); err != nil {
				t.Fatal(err)
			}
			s.fs = nothingNew{}
			dismantled(t, s, contents, "golden", "ofa", "ofb")
			if _, err := s.Remove(context.Background(), "img"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A manifest that somebody has copied names what another one names, heads among it.
func TestCopiedManifestKeepsLayers(t *testing.T) {
	ctx := context.Background()
	for _, step := range []string{"rm copy", "rm original", "rollback copy", "promote copy, rm it", "promote original, rm copy", "promote copy, rm original", "another command, rm copy"} {
		t.Run(step, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "a", CreateOptions{Size: 1 << 20})
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
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
			if step != "promote copy, rm it" { // which has sealed the other's head
				openDisk(t, s, stays).Close()
			}
		})
	}
}

// Whoever removes a part of refs/, or all of it, takes no layer from a disk.
func TestReferencesRemovedByHand(t *testing.T) {
	ctx := context.Background()
	for _, part := range []string{"[0-9a-f]*", "[0-9a-f]*/*", "image-*", "image-*/*", "*", "stamp", ""} {
		t.Run(part, func(t *testing.T) {
			s := newStore(t)
			img := filepath.Join(t.TempDir(), "img")
			if err := os.WriteFile(img, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Import(ctx, img, "img", ImportOptions{}); err != nil {
				t.Fatal(err)
			}
			create(t, s, "a", CreateOptions{From: "img"})
			if _, err := s.Promote(ctx, []string{"a"}, "t"); err != nil {
				t.Fatal(err)
			}
			create(t, s, "b", CreateOptions{From: "a@t"})
			create(t, s, "c", CreateOptions{From: "a@t"})
			all, err := filepath.Glob(s.path(refsDir, part))
			if err != nil || len(all) == 0 {
				t.Fatalf("%v, %v", all, err)
			}
			for _, name := range all {
				if err := os.RemoveAll(name); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{"a", "c"} {
				if _, err := s.Remove(ctx, name); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Remove(ctx, "img"); !errors.Is(err, ErrInUse) {
				t.Errorf("the image of a disk: %v", err)
			}
			openDisk(t, s, "b").Close()
			if r, err := s.Check(ctx, CheckOptions{}); err != nil || r.Found > 0 {
				t.Errorf("check: %+v, %v", r, err)
			}
		})
	}
}
