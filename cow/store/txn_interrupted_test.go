package store

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// noRoom is a file system without space for a new document.
type noRoom struct{ vfs.OS }

func (noRoom) WriteFileAtomic(name string, _ []byte, _ fs.FileMode) error {
	return &fs.PathError{Op: "write", Path: name, Err: unix.ENOSPC}
}

// readOnly is a file system that is mounted read-only.
type readOnly struct{ vfs.OS }

func (r readOnly) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if flag&(os.O_RDWR|os.O_WRONLY|os.O_CREATE) != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.EROFS}
	}
	return r.OS.OpenFile(name, flag, perm)
}

// interrupted returns a store in which a process died in a change of two disks that had reached the
// first.
func interrupted(t *testing.T) *Store {
	t.Helper()
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	create(t, s, "vm2", CreateOptions{Size: 1 << 20})
	var disks []*Manifest
	for _, name := range []string{"vm1", "vm2"} {
		m := manifestOf(t, s, name)
		disks = append(disks, m)
	}
	p, err := s.preparePromotion(ctx, &Pending{s: s, tag: "both", before: disks})
	test.Must(t, err)
	for _, h := range p.heads {
		test.Must(t, h.Close())
	}
	for from, to := range map[string]string{
		commitFile + stagedAfter: p.txn.path(commitFile), "0" + stagedAfter: s.path(disksDir, "vm1",
			diskFile),
	} {
		test.Must(t, os.Rename(p.txn.path(from), to))
	}
	test.Must(t, errors.Join(p.fds.free(len(p.fds)), p.txn.lock.Close()))
	return s
}

// An interrupted change of several disks is completed on a full file system.
func TestInterruptedChangeTakesNoRoom(t *testing.T) {
	s := interrupted(t)
	s.fs = noRoom{}
	for _, name := range []string{"vm2", "vm1"} {
		o := openDisk(t, s, name)
		if _, err := o.Manifest.Tagged("both"); err != nil {
			t.Error(err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}

// If the store is read-only the change cannot be completed. The disks are refused, not shown in two
// different states.
func TestInterruptedChangeOfAReadOnlyStore(t *testing.T) {
	s := interrupted(t)
	before := snapshot(t, s.Dir())
	s.fs = readOnly{}
	test.ErrorIs(t, test.Err(s.OpenDisk(ctx, "vm2", OpenOptions{ReadOnly: true})), ErrRefused,
		"error")
	if _, err := s.OpenTag(ctx, Ref{"vm1", "both"}, cow.Options{}); !errors.Is(err, ErrRefused) {
		t.Errorf("%v, expected %v", err, ErrRefused)
	}
	r, err := s.Check(ctx, CheckOptions{})
	if err != nil || r.Found == 0 {
		t.Errorf("%+v, %v: expected the work of a dead process", r, err)
	}
	sameFiles(t, before, snapshot(t, s.Dir()))
	// After the change was completed by a writer, the disks can be read.
	s.fs = vfs.OS{}
	openDisk(t, s, "vm2").Close()
	s.fs = readOnly{}
	o, err := s.OpenDisk(ctx, "vm2", OpenOptions{ReadOnly: true})
	test.Must(t, err)
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}
