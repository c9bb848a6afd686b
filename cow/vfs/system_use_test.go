package vfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cowblk/internal/test"
)

// CheckSystemUse finds a mounted device by any name and below another device. A device that is only
// open, also by several at once, is free.
func TestSystemUse(t *testing.T) {
	dev := loopDevice(t, 16<<20, 512)
	plain := filepath.Join(t.TempDir(), "plain")
	test.Must(t, create(t, plain).Close())
	free, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file"))
	test.Must(t, err)
	for _, path := range []string{dev, strings.TrimSpace(string(free)), plain, plain + "-missing",
		os.DevNull, t.TempDir()} {
		if err := CheckSystemUse(OS{}, path); err != nil {
			t.Errorf("%s: expected nil, got %v", path, err)
		}
	}
	f, err := OS{}.OpenFile(dev, os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			test.Check(t, CheckSystemUse(OS{}, dev), "beside others that ask")
		})
	}
	wg.Wait()

	if out, err := exec.Command("mkfs.ext4", "-q", "-F", dev).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4 here: %v: %s", err, out)
	}
	at := filepath.Join(t.TempDir(), "with a blank")
	test.Must(t, os.Mkdir(at, 0o700))
	if out, err := exec.Command("mount", dev, at).CombinedOutput(); err != nil {
		t.Skipf("no mounts here: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", at).Run() })
	link := filepath.Join(t.TempDir(), "link")
	test.Must(t, os.Symlink(dev, link))
	above, err := exec.Command("losetup", "--find", "--show", "--read-only", dev).Output()
	test.Must(t, err)
	upper := strings.TrimSpace(string(above))
	t.Cleanup(func() { exec.Command("losetup", "--detach", upper).Run() })
	backing, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev),
		"loop/backing_file"))
	test.Must(t, err)
	for _, path := range []string{dev, link, upper, strings.TrimSpace(string(backing))} {
		err := CheckSystemUse(OS{}, path)
		if !errors.Is(err, ErrSystemUses) || !strings.Contains(err.Error(), `mounted at "`+at) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%s: expected an error that names it and %s, got %v", path, at, err)
		}
	}
}
