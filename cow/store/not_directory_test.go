package store

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A file that is no directory in place of a disk or an image is named by every command that finds
// it, and stays.
func TestStrays(t *testing.T) {
	for _, kind := range []string{KindDisk, KindImage} {
		for what, make := range map[string]func(path string) error{
			"a file": func(path string) error {
				return os.WriteFile(path, []byte("precious"), 0o600)
			},
			"a FIFO": func(path string) error {
				return unix.Mkfifo(path, 0o600)
			},
			"a symbolic link to nothing": func(path string) error {
				return os.Symlink("nothing", path)
			},
			"a symbolic link to a file": func(path string) error {
				return os.Symlink("../lock", path)
			},
			"a symbolic link that leads nowhere": func(path string) error {
				return os.Symlink(filepath.Base(path), path)
			},
			"a symbolic link that leads nowhere \b": func(path string) error {
				return os.Symlink("../lock/x", path)
			},
			"a socket": func(path string) error {
				l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
				if err == nil {
					l.SetUnlinkOnClose(false)
					err = l.Close()
				}
				return err
			},
		} {
			what = strings.TrimSuffix(what, " \b")
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			test.Must(t, os.MkdirAll(s.path(imagesDir), 0o700))
			path := s.path(dirOf(kind), "x")
			test.Must(t, make(path))
			before, err := os.Lstat(path)
			test.Must(t, err)

			_, created := s.Create(ctx, "x", CreateOptions{Size: 1 << 20})
			_, imported := s.Import(ctx, tempFile(t, "golden", noise(1, 64<<10)), "x",
				ImportOptions{})
			for from, err := range map[string]error{"create": created, "import": imported} {
				if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(),
					path+" is "+what+", and no "+kind) {
					t.Errorf("%s, %s: %s: %v", kind, what, from, err)
				}
			}
			_, planned := s.PlanRemove("x")
			_, removed := s.Remove(ctx, "x")
			_, damaged := s.RemoveDamaged(ctx, "x")
			_, read := s.Disk("x")
			_, opened := s.OpenDisk(ctx, "x", OpenOptions{})
			_, from := s.Create(ctx, "y", CreateOptions{From: "x"})
			for from, err := range map[string]error{"plan": planned, "rm": removed,
				"rm --damaged": damaged, "read": read, "open": opened, "create --from": from} {
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(),
					path+": "+kind+": expected a directory, found "+what) {
					t.Errorf("%s, %s: %s: %v", kind, what, from, err)
				}
			}
			if strays, err := s.NotDirectories(); err != nil || len(strays) != 1 ||
				*strays[0] != (NotDirectory{kind, "x", path, what}) {
				t.Errorf("%s, %s: %v, %v", kind, what, strays, err)
			}
			for _, names := range [][]string{nil, {"x"}} {
				r, err := s.Check(ctx, CheckOptions{Names: names, Repair: true})
				if err != nil || r.Found != 1 || r.Left() != 1 || r.Failed != 0 {
					t.Errorf("%s, %s: check %v: %+v, %v", kind, what, names, r, err)
				}
			}
			if r, err := s.Check(ctx, CheckOptions{Names: []string{"vm1"}}); err != nil ||
				r.Found != 0 {
				t.Errorf("%s, %s: check vm1: %+v, %v", kind, what, r, err)
			}
			if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() ||
				!os.SameFile(before, after) {
				t.Errorf("%s, %s: afterwards: %v, %v", kind, what, after, err)
			}
		}
	}
}
