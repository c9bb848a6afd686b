package store

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// withoutIndex hides the index, as from a version that does not know it.
type withoutIndex struct{ vfs.FS }

func hideIndex(name string) error {
	if filepath.Base(name) == indexDir || filepath.Base(filepath.Dir(name)) == indexDir {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return nil
}

func (f withoutIndex) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := hideIndex(name); err != nil {
		return nil, err
	}
	return f.FS.OpenFile(name, flag, perm)
}

func (f withoutIndex) MkdirAll(name string, perm fs.FileMode) error {
	if err := hideIndex(name); err != nil {
		return err
	}
	return f.FS.MkdirAll(name, perm)
}

// A disk that an older version has removed, after this one promoted it, keeps no layer: the index
// does not take it for one that was moved away.
func TestRemovedByAnOlderVersion(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	if _, err := s.Promote(t.Context(), []string{"vm1"}, "t"); err != nil {
		t.Fatal(err)
	}
	create(t, s, "clone", CreateOptions{From: "vm1@t"})
	older := openStore(t, s.Dir())
	older.fs = withoutIndex{vfs.OS{}}
	if _, err := older.Remove(t.Context(), "vm1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "clone"); err != nil {
		t.Fatal(err)
	}
	if left := entries(t, s.path(layersDir)); len(left) > 0 {
		t.Errorf("layers: %v", left)
	}
}

// An index that a power cut has damaged is still cowblk's.
func TestDamagedIndexIsOwn(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	path := s.path(indexDir, indexFile)
	line := first(os.ReadFile(path))
	texts := [][]byte{nil, {'\n'}, make([]byte, 200), append(make([]byte, 200), line...)}
	for n := range 40 {
		texts = append(texts, line[:n], append(line[:n:n], make([]byte, 200)...))
	}
	for n := range 7 {
		texts = append(texts, append(make([]byte, 512*(1+n%2)), line[len(line)-n-1:]...))
	}
	texts = append(texts, append(make([]byte, 512), line[9:]...))
	for _, text := range texts {
		test.Must(t, os.WriteFile(path, text, 0o600))
		if err := s.ownIndex(path); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	disk := string(make([]byte, 512))
	for _, text := range []string{"precious", "a b", "0123456789abcdef0",
		"0123456789abcdef {\"name\":", disk + "precious", disk + "\xff}", disk + "x\n}"} {
		test.Must(t, os.WriteFile(path, []byte(text), 0o600))
		if s.ownIndex(path) == nil {
			t.Errorf("%q is taken for an index", text)
		}
	}
}

// An index that a power cut has left as it was when a rollback had announced its new head does not
// take the disk before the rollback for one that was moved away.
func TestIndexBeforeARollback(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	var before *Manifest
	for _, tag := range []string{"t", "u"} {
		_, err := s.Promote(t.Context(), []string{"vm1"}, tag)
		test.Must(t, err)
		before = first(s.Disk("vm1"))
	}
	r, err := s.Rollback(t.Context(), Ref{"vm1", "t"})
	test.Must(t, err)
	e := entryOf("vm1", before)
	e.Layers = append(e.Layers, r.Head)
	test.Must(t, os.WriteFile(s.path(indexDir, indexFile), e.line(), 0o600))
	_, err = s.Remove(t.Context(), "vm1")
	test.Must(t, err)
	if left := entries(t, s.path(layersDir)); len(left) > 0 {
		t.Errorf("layers: %v", left)
	}
}

// An index that a power cut has taken back to before a promotion keeps the layers of a disk that
// was moved away, and none of a disk that an older version has removed.
func TestIndexBeforeAPromotion(t *testing.T) {
	for _, moved := range []bool{false, true} {
		s := newStore(t)
		create(t, s, "vm1", CreateOptions{Size: 1 << 20})
		index := first(os.ReadFile(s.path(indexDir, indexFile)))
		for _, tag := range []string{"t", "u"} {
			_, err := s.Promote(t.Context(), []string{"vm1"}, tag)
			test.Must(t, err)
		}
		create(t, s, "clone", CreateOptions{From: "vm1@t"})
		layers := entries(t, s.path(layersDir))
		if moved {
			test.Must(t, os.Rename(s.path(disksDir, "vm1"), filepath.Join(t.TempDir(), "vm1")))
		} else {
			older := openStore(t, s.Dir())
			older.fs = withoutIndex{vfs.OS{}}
			_, err := older.Remove(t.Context(), "vm1")
			test.Must(t, err)
		}
		test.Must(t, os.WriteFile(s.path(indexDir, indexFile), index, 0o600))
		_, err := s.Remove(t.Context(), "clone")
		test.Must(t, err)
		left, want := len(entries(t, s.path(layersDir))), 0
		if moved {
			want = len(layers) - 1 // without the clone's head
		}
		if left != want {
			t.Errorf("moved away %t: %d layers are left, expected %d", moved, left, want)
		}
	}
}

// A manifest that could not be read once keeps no layer of a disk that is removed.
func TestRemoveBesideAReadThatFailsOnce(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	older := openStore(t, s.Dir())
	older.fs = withoutIndex{vfs.OS{}}
	_, err := older.Promote(t.Context(), []string{"vm1"}, "t")
	test.Must(t, err)
	layers := entries(t, s.path(layersDir))
	create(t, s, "clone", CreateOptions{From: "vm1@t"})
	failed := 0
	files := faultfs.Over(vfs.OS{}, nil)
	files.OnCall(func(c faultfs.Call) error {
		if c.Op == "open" && c.Name == s.path(disksDir, "vm1", diskFile) {
			if failed++; failed == 1 {
				return syscall.EACCES
			}
		}
		return nil
	})
	s.fs = files
	_, err = s.Remove(t.Context(), "clone")
	test.Must(t, err)
	if left := entries(t, s.path(layersDir)); failed < 2 || len(left) != len(layers) {
		t.Errorf("after %d reads: %d layers are left, expected %d", failed, len(left), len(layers))
	}
}
