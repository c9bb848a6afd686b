package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow"
	"cowblk/cow/imagefile"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// TestFilesOfAStore: no file of a store is written raw, imported, or a part of a disk, by its path
// in any store and by any name in one's own. Nor is a file that only lies in one.
func TestFilesOfAStore(t *testing.T) {
	s, other := newStore(t), newStore(t)
	unmarked := newStore(t) // as of an earlier version
	fresh := func() string { return plainFile(t, 1<<20) }
	for _, st := range []*Store{s, other, unmarked} {
		importRaw(t, st, "golden", noise(3, 1<<20))
		d := create(t, st, "d", CreateOptions{From: "golden"})
		openDisk(t, st, "d").Close()
		if err := os.Truncate(unmarked.path(lockFile), 0); err != nil && st == unmarked {
			t.Fatal(err)
		}
		lying := st.path("lying")
		txn := st.path(tmpDir, "1-2")
		if err := os.Mkdir(txn, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(txn, "file"), make([]byte, 1<<20))
		write(t, lying, make([]byte, 1<<20))
		for _, path := range []string{
			st.path(lockFile), st.path(reserveDir, "00"), st.path(disksDir, "d", lockFile),
			st.path(disksDir, "d", diskFile),
			st.path(indexDir, indexFile), st.path(imagesDir, "golden", imageFile),
			filepath.Join(txn, "file"),
			st.ImageData("golden"), st.paths(d.Head()).Data, st.paths(d.Head()).Map, lying,
		} {
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			names := map[string]string{"same path": path}
			if st == s {
				names = aliases(t, path)
			}
			for name, alias := range names {
				hidden := name == "hard link" || name == "bind mount"
				if hidden && path == lying || name == "loop device" &&
					fi.Size() < layer.SectorSize {
					continue // nothing marks the first; the second is empty
				}
				if name == "hard link" {
					outside := filepath.Join(t.TempDir(), "link")
					if err := os.Rename(alias, outside); err != nil {
						t.Fatal(err)
					}
					alias = outside
				}
				refused := func(use string, err error) {
					t.Helper()
					if !errors.Is(err, ErrRefused) {
						t.Errorf("%s by %s, %s: expected %v, found %v", path, name, use, ErrRefused,
							err)
					}
				}
				refused("raw", CheckWritable(s, alias))
				if !hidden {
					refused("raw without a store", CheckWritable(nil, alias))
				}
				_, err := s.Create(ctx, "b", CreateOptions{Base: alias, Force: true,
					ForceShare: true})
				refused("base", err)
				for use, table := range map[string]string{
					"base of a table": tableOf(alias, 0, fresh(), fresh(), 0),
					"map of a table":  tableOf(fresh(), 0, alias, fresh(), 0),
					"data of a table": tableOf(fresh(), 0, fresh(), alias, 0),
				} {
					_, err := s.Create(ctx, "b", CreateOptions{Table: table, Force: true,
						ForceShare: true})
					refused(use, err)
				}
				isData := path == st.ImageData("golden") || path == st.paths(d.Head()).Data
				if _, err := newStore(t).Import(ctx, alias, "i",
					ImportOptions{Format: imagefile.Raw, ForceShare: true}); isData ||
					filepath.Base(path) == "lying" {
					if err != nil {
						t.Errorf("%s by %s, import: %v", path, name, err)
					}
				} else if !hidden {
					refused("import", err)
				}
			}
		}
		if got := content(t, st, "d"); string(got) != string(noise(3, 1<<20)) {
			t.Error("disk d has changed")
		}
	}
}

// TestRawFileOfADisk: a file that a disk of the user's store uses is not written raw, although
// nothing serves the disk.
func TestRawFileOfADisk(t *testing.T) {
	s := newStore(t)
	fresh := func() string { return plainFile(t, 1<<20) }
	base, m, data, below := fresh(), fresh(), fresh(), fresh()
	create(t, s, "a", CreateOptions{Table: tableOf(base, 0, m, data, 0)})
	create(t, s, "b", CreateOptions{Base: below})
	for _, path := range []string{base, m, data, below} {
		for name, alias := range aliases(t, path) {
			err := CheckWritable(s, alias)
			if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "disk \"") ||
				!strings.Contains(err.Error(), "--read-only") {
				t.Errorf("%s by %s: expected %v that names the disk, found %v", path, name,
					ErrInUse, err)
			}
			if err := CheckWritable(newStore(t), alias); err != nil {
				t.Errorf("%s by %s, another store: %v", path, name, err)
			}
		}
	}
	write(t, s.path(disksDir, "a", diskFile), []byte("{"))
	if err := CheckWritable(s, fresh()); err != nil {
		t.Errorf("beside a damaged disk: %v", err)
	}
	if err := CheckWritable(s, below); !errors.Is(err, ErrInUse) {
		t.Errorf("beside a damaged disk: expected %v, found %v", ErrInUse, err)
	}
}

// TestNoStore: a directory does not become a store by names in it.
func TestNoStore(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"images", "disks/x"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "images", "disk.raw")
	write(t, file, make([]byte, 1<<20))
	for _, lock := range []string{"", "other content", "none"} {
		if lock != "none" {
			write(t, filepath.Join(dir, lockFile), []byte(lock))
		} else if err := os.Remove(filepath.Join(dir, lockFile)); err != nil {
			t.Fatal(err)
		}
		own, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*Store{nil, own, newStore(t)} {
			if err := CheckWritable(s, file); err != nil {
				t.Errorf("lock %q: %v", lock, err)
			}
		}
	}
}

// rawInUse reports whether a raw file was refused because of a lock of another process, of either
// kind.
func rawInUse(err error) bool {
	return errors.Is(err, layer.ErrInUse) || errors.Is(err, vfs.ErrImageLocked)
}

// TestRawFileUnderDisk: a file that is served raw cannot be a base, data or map at the same time,
// in both orders.
func TestRawFileUnderDisk(t *testing.T) {
	s := newStore(t)
	base, m, data := plainFile(t, 1<<20), plainFile(t, 1<<20), plainFile(t, 1<<20)
	create(t, s, "table", CreateOptions{Table: tableOf(plainFile(t, 1<<20), 0, m, data, 0)})
	create(t, s, "on-base", CreateOptions{Base: base})
	importRaw(t, s, "golden", noise(3, 1<<20))
	own := create(t, s, "own", CreateOptions{From: "golden"})
	raw := func(path string, readOnly bool) (*cow.Disk, error) {
		return cow.Open(cow.Spec{Base: &cow.BaseSpec{Path: path}, Raw: !readOnly,
			ReadOnly: readOnly}, cow.Options{})
	}
	for _, c := range []struct{ disk, path string }{
		{"on-base", base}, {"table", data}, {"table", m}, {"own", s.paths(own.Head()).Data},
		{"own", s.ImageData("golden")},
	} {
		for name, alias := range aliases(t, c.path) {
			o := openDisk(t, s, c.disk)
			if d, err := raw(alias, false); !rawInUse(err) {
				t.Errorf("%s of an open disk raw, by %s: expected %v, found %v", c.path, name,
					layer.ErrInUse, err)
				if err == nil {
					d.Close()
				}
			}
			test.Must(t, o.Close())
			d, err := raw(alias, false)
			if err != nil {
				t.Errorf("%s of a closed disk raw, by %s: %v", c.path, name, err)
				continue
			}
			test.ErrorIs(t, tryOpen(s, c.disk), ErrInUse,
				fmt.Sprintf("a disk on %s, which is open raw by %s: open", c.path, name))
			for _, readOnly := range []bool{false, true} {
				if again, err := raw(c.path, readOnly); !rawInUse(err) {
					t.Errorf("%s raw twice, by %s, the second one read-only %v: expected %v, found %v", c.path, name, readOnly, layer.ErrInUse, err)
					if err == nil {
						again.Close()
					}
				}
			}
			test.Must(t, d.Close())
		}
	}
	one, err := raw(base, true)
	test.Must(t, err)
	defer one.Close()
	two, err := raw(base, true)
	if err != nil {
		t.Fatalf("read-only twice: %v", err)
	}
	defer two.Close()
	openDisk(t, s, "on-base").Close()
}

// partition makes a loop device with one partition over a file, and returns both. It returns "" and
// logs if this machine or user cannot.
func partition(t *testing.T, path string, start, sectors int) (disk, part string) {
	if disk = loopDevice(t, path); disk == "" {
		return "", ""
	}
	if out, err := exec.Command("addpart", disk, "1", fmt.Sprint(start),
		fmt.Sprint(sectors)).CombinedOutput(); err != nil {
		t.Logf("without partitions: %v: %s", err, out)
		return disk, ""
	}
	t.Cleanup(func() { exec.Command("delpart", disk, "1").Run() })
	// A device node made here: without udev there is none in /dev.
	number, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(disk),
		filepath.Base(disk)+"p1", "dev"))
	if err != nil {
		t.Logf("without partitions: %v", err)
		return disk, ""
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(number)), ":")
	part = filepath.Join(t.TempDir(), "p1")
	if out, err := exec.Command("mknod", part, "b", major, minor).CombinedOutput(); err != nil {
		t.Logf("without device nodes: %v: %s", err, out)
		return disk, ""
	}
	return disk, part
}

// TestPartitions: a partition is a part of its disk, and of the file that is the disk.
func TestPartitions(t *testing.T) {
	const start, sectors = 64, 1024
	file := plainFile(t, 2048*512)
	disk, part := partition(t, file, start, sectors)
	if part == "" {
		t.Skip("this machine or this user has no partitions of loop devices")
	}
	a, b := newStore(t), newStore(t)
	fresh := func() string { return plainFile(t, 1<<20) }
	create(t, a, "a", CreateOptions{Table: tableOf(fresh(), 0, fresh(), part, 8)})
	for name, path := range map[string]string{"the disk": disk, "the file": file} {
		inside, outside := tableOf(fresh(), 0, fresh(), path, start+8+tableSectors-1),
			tableOf(fresh(), 0, fresh(), path, start+8+tableSectors)
		if _, err := a.Create(ctx, "b", CreateOptions{Table: inside}); !errors.Is(err, ErrInUse) ||
			!strings.Contains(err.Error(), `disk "a"`) {
			t.Errorf("sectors of the partition as those of %s: expected %v, found %v", name,
				ErrInUse, err)
		}
		if _, err := a.Create(ctx, "b", CreateOptions{Table: outside}); err != nil {
			t.Errorf("other sectors of %s: %v", name, err)
		} else if _, err := a.Remove(ctx, "b"); err != nil {
			t.Fatal(err)
		}
		// Another store does not know the disk, but finds its locks.
		create(t, b, "b", CreateOptions{Table: inside})
		o := openDisk(t, a, "a")
		if other, err := b.OpenDisk(ctx, "b", OpenOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("another store's disk on %s: expected %v, found %v", name, ErrInUse, err)
			if err == nil {
				other.Close()
			}
		}
		if raw, err := cow.Open(cow.Spec{Base: &cow.BaseSpec{Path: path}, Raw: true},
			cow.Options{}); !rawInUse(err) {
			t.Errorf("%s raw: expected %v, found %v", name, layer.ErrInUse, err)
			if err == nil {
				raw.Close()
			}
		}
		test.Must(t, o.Close())
		test.Must(t, test.Err(b.Remove(ctx, "b")))
	}
}
