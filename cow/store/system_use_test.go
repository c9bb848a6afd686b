package store

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// mounted makes a loop device of 16 MiB and returns it with functions that mount it and unmount it.
func mounted(t *testing.T) (dev, at string, mount, unmount func()) {
	dev, at = loopDevice(t, plainFile(t, 16<<20)), t.TempDir()
	if dev == "" {
		t.Skip("this machine or this user has no loop devices")
	}
	do := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	mount = func() { do("mkfs.ext4", "-q", "-F", dev); do("mount", "-o", "ro,noload", dev, at) }
	unmount = func() { do("umount", at) }
	t.Cleanup(func() { exec.Command("umount", "-q", at).Run() })
	return dev, at, mount, unmount
}

// TestDeviceOfTheSystem: a device that the system uses is not written, and read only with
// --force-share. A disk whose base is on it opens.
func TestDeviceOfTheSystem(t *testing.T) {
	s := newStore(t)
	fresh := func() string { return plainFile(t, 1<<20) }
	dev, at, mount, unmount := mounted(t)
	create(t, s, "on-data", CreateOptions{Table: tableOf(fresh(), 0, fresh(), dev, 0)})
	create(t, s, "beside", CreateOptions{Table: tableOf(fresh(), 0, fresh(), dev, tableSectors)})
	a, b := openDisk(t, s, "on-data"), openDisk(t, s, "beside") // ranges of one device
	for _, o := range []*Opened{a, b} {
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mount()
	other := newStore(t)
	create(t, other, "on-base", CreateOptions{Base: dev, ForceShare: true})
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dev) ||
			!strings.Contains(err.Error(), at) || !strings.Contains(err.Error(), "unmount") {
			t.Errorf("%s: expected %v that names %s and %s, found %v", what, ErrInUse, dev, at, err)
		}
	}
	_, err := s.OpenDisk(ctx, "on-data", OpenOptions{})
	refused("open with data", err)
	_, err = s.Create(ctx, "n", CreateOptions{Table: tableOf(fresh(), 0, fresh(), dev,
		4*tableSectors), Force: true, ForceShare: true})
	refused("data of a table", err)
	_, err = s.Create(ctx, "n", CreateOptions{Table: tableOf(fresh(), 0, dev, fresh(), 0),
		Force: true, ForceShare: true})
	refused("map of a table", err)
	_, err = s.Create(ctx, "n", CreateOptions{Table: tableOf(dev, 8*tableSectors, fresh(), fresh(),
		0), Force: true})
	refused("base of a table", err)
	_, err = other.Create(ctx, "n", CreateOptions{Base: dev})
	refused("base", err)
	if !strings.Contains(err.Error(), "--force-share") {
		t.Errorf("base: expected the option to use, found %v", err)
	}
	_, err = s.Import(ctx, dev, "img", ImportOptions{})
	refused("import", err)
	if _, err := s.Import(ctx, dev, "img", ImportOptions{ForceShare: true}); err != nil {
		t.Errorf("import with --force-share: %v", err)
	}
	for _, path := range []string{dev, loopDevice(t, dev)} {
		refused("raw", CheckWritable(nil, path))
	}
	r, err := s.OpenDisk(ctx, "on-data", OpenOptions{ReadOnly: true})
	if err != nil {
		t.Errorf("read-only: %v", err)
	} else if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	openDisk(t, other, "on-base").Close()
	unmount()
	openDisk(t, s, "on-data").Close()
	if err := CheckWritable(nil, dev); err != nil {
		t.Errorf("raw, not mounted: %v", err)
	}
}
