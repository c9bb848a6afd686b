package store

import (
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// counting counts the calls on the machine's file system. RemoveAll and WriteFileAtomic count as
// one call each.
type counting struct {
	vfs.OS
	calls atomic.Int64
}

func (c *counting) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	c.calls.Add(1)
	return c.OS.OpenFile(name, flag, perm)
}

func (c *counting) Rename(from, to string) error {
	c.calls.Add(1)
	return c.OS.Rename(from, to)
}

func (c *counting) Remove(name string) error {
	c.calls.Add(1)
	return c.OS.Remove(name)
}

func (c *counting) RemoveAll(name string) error {
	c.calls.Add(1)
	return c.OS.RemoveAll(name)
}

func (c *counting) MkdirAll(name string, perm fs.FileMode) error {
	c.calls.Add(1)
	return c.OS.MkdirAll(name, perm)
}

func (c *counting) Mkdir(name string, perm fs.FileMode) error {
	c.calls.Add(1)
	return c.OS.Mkdir(name, perm)
}

func (c *counting) SomeNames(dir string, n int) ([]string, error) {
	c.calls.Add(1)
	return c.OS.SomeNames(dir, n)
}

func (c *counting) SyncDir(name string) error {
	c.calls.Add(1)
	return c.OS.SyncDir(name)
}

func (c *counting) ReadFile(name string) ([]byte, error) {
	c.calls.Add(1)
	return c.OS.ReadFile(name)
}

func (c *counting) WriteFileAtomic(name string, data []byte, perm fs.FileMode) error {
	c.calls.Add(1)
	return c.OS.WriteFileAtomic(name, data, perm)
}

func (c *counting) Stat(name string) (fs.FileInfo, error) {
	c.calls.Add(1)
	return c.OS.Stat(name)
}

func (c *counting) Versions(names []string) []*vfs.Version {
	c.calls.Add(1)
	return c.OS.Versions(names)
}

func (c *counting) ReadDir(name string) ([]fs.DirEntry, error) {
	c.calls.Add(1)
	return c.OS.ReadDir(name)
}

func countingStore(t testing.TB) (*Store, *counting) {
	t.Helper()
	c := &counting{}
	s, err := Open(filepath.Join(t.TempDir(), "store"), Options{
		FS: c, Log: slog.New(slog.DiscardHandler), Getenv: noEnv,
		Now: func() time.Time { return time.Date(2006, 11, 27, 12, 0, 0, 0, time.UTC) },
	})
	test.Must(t, err)
	return s, c
}

// counted has the commands whose cost must not grow with the number of disks or the depth of a
// shared stack.
func counted(t *testing.T, s *Store, c *counting) map[string]int64 {
	t.Helper()
	counts := map[string]int64{}
	s.clockMargin = -time.Hour // the index trusts the disks as if they were old
	// The first command that deletes reads all manifests.
	test.Must(t, test.Err(s.Remove(ctx, "d0")))
	count := func(what string, f func() error) {
		t.Helper()
		before := c.calls.Load()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		counts[what] = c.calls.Load() - before
	}
	count("create", func() error {
		_, err := s.Create(ctx, "x", CreateOptions{Size: 1 << 20})
		return err
	})
	count("create from image",
		func() error { _, err := s.Create(ctx, "y", CreateOptions{From: "img"}); return err })
	count("create from tag", func() error {
		_, err := s.Create(ctx, "z", CreateOptions{From: "golden@t"})
		return err
	})
	count("promote", func() error { _, err := s.Promote(ctx, []string{"x"}, "t"); return err })
	count("promote again", func() error {
		_, err := s.Promote(ctx, []string{"x"}, "u")
		return err
	})
	count("plan rollback", func() error {
		_, err := s.PlanRollback(t.Context(), Ref{"x", "t"})
		return err
	})
	count("rollback", func() error { _, err := s.Rollback(ctx, Ref{"x", "t"}); return err })
	count("check", func() error {
		_, err := s.Check(ctx, CheckOptions{Names: []string{"x"}})
		return err
	})
	count("open", func() error {
		o, err := s.OpenDisk(ctx, "x", OpenOptions{})
		if err != nil {
			return err
		}
		return o.Close()
	})
	count("info", func() error {
		m, err := s.Disk("z")
		if err != nil {
			return err
		}
		shared, err := s.SharedLayers(m)
		if err == nil && shared != len(m.Layers)-1 {
			err = fmt.Errorf("%d of %d layers are shared", shared, len(m.Layers))
		}
		return err
	})
	count("names", func() error { _, err := s.DiskNames(); return err })
	count("plan remove", func() error { _, err := s.PlanRemove("x"); return err })
	count("remove", func() error { _, err := s.Remove(ctx, "x"); return err })
	count("remove clone", func() error { _, err := s.Remove(ctx, "z"); return err })
	count("remove on image", func() error { _, err := s.Remove(ctx, "y"); return err })
	return counts
}

// manyDisks creates n clones of one tag in a store that has an image.
func manyDisks(t testing.TB, s *Store, n int) {
	t.Helper()
	importRaw(t, s, "img", noise(1, 1<<16))
	importRaw(t, s, "spare", noise(2, 1<<16))
	create(t, s, "golden", CreateOptions{From: "img"})
	test.Must(t, test.Err(s.Promote(ctx, []string{"golden"}, "t")))
	for i := range n {
		create(t, s, fmt.Sprintf("d%d", i), CreateOptions{From: "golden@t"})
	}
}

// The cost of a command about one disk does not grow with the number of disks.
func TestCallsDoNotFollowDisks(t *testing.T) {
	few, c := countingStore(t)
	manyDisks(t, few, 3)
	small := counted(t, few, c)
	many, c := countingStore(t)
	manyDisks(t, many, 60)
	large := counted(t, many, c)
	for what, n := range small {
		t.Logf("%-18s %4d calls beside 3 disks, %4d beside 60", what, n, large[what])
		if large[what] != n {
			t.Errorf("%s: %d calls beside 3 disks, %d beside 60", what, n, large[what])
		}
	}
}

// The cost of a clone does not grow with the depth of its stack.
func TestCallsDoNotFollowDepth(t *testing.T) {
	costs := func(tags int) map[string]int64 {
		s, c := countingStore(t)
		create(t, s, "golden", CreateOptions{Size: 1 << 20})
		for i := range tags {
			test.Must(t, test.Err(s.Promote(ctx, []string{"golden"}, fmt.Sprint("t", i))))
		}
		counts := map[string]int64{}
		last := fmt.Sprint("golden@t", tags-1)
		before := c.calls.Load()
		create(t, s, "clone", CreateOptions{From: last})
		counts["create"] = c.calls.Load() - before
		m := manifestOf(t, s, "clone")
		before = c.calls.Load()
		p, err := s.PreparePromotion(ctx, []*Manifest{m}, "t")
		test.Must(t, err)
		test.Must(t, p.Commit())
		for _, h := range p.Heads() {
			test.Must(t, h.Close())
		}
		p.Close(true)
		counts["promote"] = c.calls.Load() - before
		before = c.calls.Load()
		test.Must(t, test.Err(s.Remove(ctx, "clone")))
		counts["remove"] = c.calls.Load() - before
		return counts
	}
	small, large := costs(2), costs(30)
	for what, n := range small {
		t.Logf("%-8s %4d calls on 2 tags, %4d on 30", what, n, large[what])
		if large[what] != n {
			t.Errorf("%s: %d calls on 2 tags, %d on 30", what, n, large[what])
		}
	}
}
