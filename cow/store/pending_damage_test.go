package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"cowblk/internal/test"
)

// TestRecordThatCannotBeRead: if the record of a change of several disks is unreadable, the disks
// that it concerns are unknown. No command believes any manifest, and nothing is changed or lost.
func TestRecordThatCannotBeRead(t *testing.T) {
	for _, text := range []string{"", "garbage", "{}", `{"from":[],"to":[],"new":1}`,
		`{"from":["` + uuid.NewString() + `"],"to":[]}`} {
		s := newStore(t)
		create(t, s, "u", CreateOptions{Size: 1 << 20})
		test.Must(t, test.Err(s.Promote(ctx, []string{"u"}, "ut")))
		dir := s.path(tmpDir, uuid.NewString())
		test.Must(t, os.MkdirAll(dir, 0o700))
		write(t, filepath.Join(dir, lockFile), nil)
		write(t, filepath.Join(dir, commitFile), []byte(text))
		before := snapshot(t, s.dir)
		for what, do := range map[string]func() error{
			"open": func() error {
				_, err := s.OpenDisk(ctx, "u", OpenOptions{})
				return err
			},
			"promote":  func() error { _, err := s.Promote(ctx, []string{"u"}, "w"); return err },
			"rollback": func() error { _, err := s.Rollback(ctx, Ref{"u", "ut"}); return err },
			"remove":   func() error { _, err := s.Remove(ctx, "u"); return err },
			"clone": func() error {
				_, err := s.Create(ctx, "c", CreateOptions{From: "u@ut"})
				return err
			},
			"trust-base": func() error { _, err := s.TrustBase(ctx, "u"); return err },
		} {
			var unfinished *unfinishedError
			if err := do(); !errors.As(err, &unfinished) {
				t.Errorf("%q: %s: expected that a change cannot be finished, found %v", text, what,
					err)
			}
		}
		sameFiles(t, before, snapshot(t, s.dir))
		test.Must(t, os.RemoveAll(dir))
		create(t, s, "c", CreateOptions{From: "u@ut"})
		if _, err := s.Remove(ctx, "u"); err != nil {
			t.Error(err)
		}
	}
}

// TestChangeOfADamagedDisk: a change of several disks is carried out on those whose manifests can
// be read. The record stays for the others, until they can be changed.
func TestChangeOfADamagedDisk(t *testing.T) {
	names := []string{"m0", "m1", "m2"}
	for bad := range names {
		for _, missing := range []bool{false, true} {
			s := newStore(t)
			var disks []*Manifest
			for _, name := range names {
				disks = append(disks, create(t, s, name, CreateOptions{Size: 1 << 20}))
			}
			p, err := s.preparePromotion(ctx, &Pending{s: s, tag: "all", before: disks})
			test.Must(t, err)
			for _, h := range p.heads {
				test.Must(t, h.Close())
			}
			test.Must(t, os.Rename(p.txn.path(commitFile+stagedAfter), p.txn.path(commitFile)))
			test.Must(t, errors.Join(p.fds.free(len(p.fds)), p.txn.lock.Close()))
			path := s.path(disksDir, names[bad], diskFile)
			saved := first(os.ReadFile(path))
			if missing {
				test.Must(t, os.Remove(path))
			} else {
				test.Must(t, os.Truncate(path, 50))
			}
			for i, name := range names {
				o, err := s.OpenDisk(ctx, name, OpenOptions{})
				if i == bad {
					if err == nil {
						t.Errorf("%s is damaged, and was opened", name)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s beside the damaged %s: %v", name, names[bad], err)
					continue
				}
				if _, err := o.Manifest.Tagged("all"); err != nil {
					t.Errorf("%s beside the damaged %s: %v", name, names[bad], err)
				}
				test.Must(t, o.Close())
			}
			// The manifest is restored from a backup made before the change.
			write(t, path, saved)
			o := openDisk(t, s, names[bad])
			if _, err := o.Manifest.Tagged("all"); err != nil {
				t.Errorf("%s was damaged (missing: %v): %v", names[bad], missing, err)
			}
			test.Must(t, o.Close())
			if left, err := os.ReadDir(s.path(tmpDir)); err != nil || len(left) > 0 {
				t.Errorf("expected nothing in tmp, found %v, %v", left, err)
			}
		}
	}
}
