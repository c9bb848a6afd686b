package store

import (
	"path/filepath"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// untidy cannot remove files below the store's tmp directory.
type untidy struct{ vfs.FS }

func (u untidy) RemoveAll(name string) error {
	if filepath.Base(filepath.Dir(name)) == tmpDir {
		return errInjected
	}
	return u.FS.RemoveAll(name)
}

// The record of a change of several disks may stay after the change if it cannot be removed. It
// must not be carried out again over later changes of the disks.
func TestStaleCommitIsLeftAlone(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	create(t, s, "vm2", CreateOptions{Size: 1 << 20})
	s.fs = untidy{vfs.OS{}}
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1", "vm2"}, "both")))
	put(t, s, "vm1", noise(1, 4096), 0)
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "later")))
	put(t, s, "vm1", noise(2, 4096), 4096)
	want := content(t, s, "vm1")
	s.fs = vfs.OS{}
	wantContent(t, s, "vm1", want, "vm1 has lost what was written since")
	m := manifestOf(t, s, "vm1")
	if _, err := m.Tagged("later"); err != nil {
		t.Error(err)
	}
	consistent(t, s, want)
}

// A change of several disks that fails half-way and cannot be undone stays recorded. While the
// process lives no other process touches it. After that the change is completed, or the disks are
// refused until it can be.
func TestCommitThatCannotBeTakenBack(t *testing.T) {
	s := newStore(t)
	var disks []*Manifest
	for _, name := range []string{"vm1", "vm2"} {
		disks = append(disks, create(t, s, name, CreateOptions{Size: 1 << 20}))
	}
	p, err := s.PreparePromotion(ctx, disks, "u")
	test.Must(t, err)
	s.fs = failsAfter(vfs.OS{}, "vm2", "vm1")
	test.ErrorIs(t, p.Commit(), errInjected, "commit")
	p.Close(false)
	p.txn.lock.Close() // the process dies
	if o, err := s.OpenDisk(ctx, "vm1", OpenOptions{}); err == nil {
		o.Close()
		t.Error("a disk was opened although its partner could not be brought along")
	}
	s.fs = vfs.OS{}
	openDisk(t, s, "vm2").Close()
	together(t, s, "vm1", "vm2", "u")
	consistent(t, s, content(t, s, "vm1"))
}

// failsAfter returns a file system that never replaces the manifest of one disk, and allows one
// replacement of another's.
func failsAfter(fsys vfs.FS, never, once string) vfs.FS {
	replaced := map[string]bool{never: true}
	return faultfs.Over(fsys, func(c faultfs.Call) (f faultfs.Fault) {
		if disk := filepath.Base(filepath.Dir(c.Name)); c.Op == "rename" &&
			filepath.Base(c.Name) == diskFile {
			if replaced[disk] {
				f.Err = errInjected
			}
			replaced[disk] = replaced[disk] || disk == once
		}
		return f
	})
}
