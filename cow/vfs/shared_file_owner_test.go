package vfs

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A file of another user in the place of a file in memory is not opened, and does not block the
// open.
func TestOpenSharedOfOthers(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "cowblk-test-")
	test.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, c := range []struct {
		name string
		make func(name string) error
	}{
		{"fifo", func(name string) error { return unix.Mkfifo(name, 0o600) }},
		{"directory", func(name string) error { return os.Mkdir(name, 0o700) }},
		{"link", func(name string) error { return os.Symlink("/etc/hostname", name) }},
		{"writable", func(name string) error {
			if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
				return err
			}
			return os.Chmod(name, 0o666)
		}},
		{"another user's", func(name string) error {
			if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil || os.Geteuid() != 0 {
				return err
			}
			return os.Chown(name, 65534, 65534)
		}},
	} {
		if c.name == "another user's" && os.Geteuid() != 0 {
			continue // only root can change owners
		}
		name := filepath.Join(dir, c.name)
		test.Must(t, c.make(name))
		for _, flag := range []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE} {
			if f, err := (OS{}).OpenShared(name, flag, 0o600); err == nil {
				f.Close()
				t.Errorf("%s was opened with flags %#x", c.name, flag)
			}
		}
	}
	f, err := OS{}.OpenShared(filepath.Join(dir, "own"), os.O_RDWR|os.O_CREATE, fs.FileMode(0o600))
	test.Must(t, err)
	f.Close()
}
