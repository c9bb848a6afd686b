package vfs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A forked child has the descriptors of an open file until it executes its program, and a lock
// belongs to the open file description that both share: Close releases it nevertheless. A duplicate
// of the descriptor stands for the child's.
func TestCloseGivesLocksUpBesideAFork(t *testing.T) {
	for name, lock := range map[string]func(f File) error{
		"flock":          func(f File) error { return f.Lock(true) },
		"flock, shared":  func(f File) error { return f.Lock(false) },
		"flock, waiting": func(f File) error { return f.(LockWaiter).LockWait() },
		"range":          func(f File) error { return f.LockRange(0, 4096, true) },
		"range, shared":  func(f File) error { return f.LockRange(0, 4096, false) },
		"image":          func(f File) error { return f.LockImage(ImageWrite) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			open := func() File {
				t.Helper()
				f, err := OS{}.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
				test.Must(t, err)
				return f
			}
			f := open()
			test.Must(t, lock(f))
			child, err := unix.FcntlInt(uintptr(f.(*osFile).fd), unix.F_DUPFD_CLOEXEC, 0)
			test.Must(t, err)
			defer unix.Close(child)
			test.Must(t, f.Close())
			next := open()
			defer next.Close()
			for what, take := range map[string]func() error{
				"flock": func() error { return next.Lock(true) },
				"range": func() error { return next.LockRange(0, 4096, true) },
				"image": func() error { return next.LockImage(ImageWrite) },
			} {
				test.Check(t, take(), what, "after Close")
			}
		})
	}
}
