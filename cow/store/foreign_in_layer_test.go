package store

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// unmovable returns the file system on which layers cannot be renamed.
func unmovable(err error) vfs.FS {
	return faultfs.Over(vfs.OS{}, func(c faultfs.Call) (f faultfs.Fault) {
		if c.Op == "rename" && strings.Contains(c.From, "/"+layersDir+"/") {
			f.Err = err
		}
		return f
	})
}

// A removal or a rollback that cannot move a layer's directory leaves the foreign files in it. It
// leaves everything if the directory may be a mount point.
func TestForeignFilesOfAnUnmovableLayer(t *testing.T) {
	commands := map[string]func(s *Store) error{
		"rm":       func(s *Store) error { _, err := s.Remove(ctx, "a"); return err },
		"rollback": func(s *Store) error { _, err := s.Rollback(ctx, Ref{"a", "t"}); return err },
	}
	for command, do := range commands {
		for _, errno := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EACCES,
			syscall.EBUSY, syscall.EXDEV, nil} {
			s := newStore(t)
			create(t, s, "a", CreateOptions{Size: 1 << 16})
			test.Must(t, test.Err(s.Promote(ctx, []string{"a"}, "t")))
			head := filepath.Dir(s.paths(first(s.Disk("a")).Head()).Map)
			test.Must(t, os.MkdirAll(filepath.Join(head, "photos", "map"), 0o700))
			for _, name := range []string{"notes.txt", "photos/1.jpg", "photos/map/data"} {
				write(t, filepath.Join(head, name), []byte("mine"))
			}
			whole := errno == syscall.EBUSY || errno == syscall.EXDEV
			name := command + ", mount point"
			if errno != nil {
				name = command + ", " + errno.Error()
				s.fs = unmovable(errno)
			} else {
				vol := t.TempDir()
				test.Must(t, os.CopyFS(vol, os.DirFS(head)))
				out, err := exec.Command("mount", "--bind", vol, head).CombinedOutput()
				if err != nil {
					t.Logf("without bind mounts: %v: %s", err, out)
					continue
				}
				t.Cleanup(func() { exec.Command("umount", head).Run() })
				whole = true
			}
			before := snapshot(t, head)
			layers := len(entries(t, s.path(layersDir)))
			if err := do(s); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			after := snapshot(t, head)
			if !whole {
				for path := range before {
					if base := filepath.Base(path); filepath.Dir(path) == head &&
						(base == mapFile || base == dataFile || base == checksumsFile) {
						delete(before, path)
					}
				}
			} else if n := len(entries(t, s.path(layersDir))); n < layers {
				t.Errorf("%s: %d layers are left, expected %d: a layer lies on them", name, n,
					layers)
			}
			sameFiles(t, before, after)
			if t.Failed() {
				t.Fatal(name)
			}
		}
	}
}

// A symbolic link in the place of the index, or of its new file, leads to no foreign file: it
// stays, and the index is not written.
func TestIndexIsNoLink(t *testing.T) {
	for _, name := range []string{indexFile, indexFile + vfs.TempSuffix} {
		for _, content := range []string{"foreign content\n", ""} {
			s := newStore(t)
			create(t, s, "a", CreateOptions{Size: 4096})
			foreign := tempFile(t, "foreign", []byte(content))
			path := s.path(indexDir, name)
			if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			test.Must(t, os.Symlink(foreign, path))
			create(t, s, "b", CreateOptions{Size: 4096})
			test.Must(t, test.Err(s.Remove(ctx, "b")))
			check(t, s, CheckOptions{Repair: true})
			if got := first(os.ReadFile(foreign)); string(got) != content {
				t.Errorf("a link %s: the foreign file holds %q", name, got)
			}
			if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSymlink {
				t.Errorf("a link %s: afterwards %v, %v", name, st.Mode(), err)
			}
		}
	}
}
