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

// alias makes other names of a file. Each leads to the same bytes.
func aliases(t *testing.T, path string) map[string]string {
	dir := t.TempDir()
	a := map[string]string{"same path": path}
	a["symbolic link"] = filepath.Join(dir, "symlink")
	test.Must(t, os.Symlink(path, a["symbolic link"]))
	a["hard link"] = path + ".hard"
	test.Must(t, os.Link(path, a["hard link"]))
	t.Cleanup(func() { os.Remove(a["hard link"]) })
	linked := filepath.Join(dir, "linkdir")
	test.Must(t, os.Symlink(filepath.Dir(path), linked))
	a["symbolic link to its directory"] = filepath.Join(linked, filepath.Base(path))
	if mount := bindMount(t, path); mount != "" {
		a["bind mount"] = mount
	}
	if loop := loopDevice(t, path); loop != "" {
		a["loop device"] = loop
	}
	return a
}

// bindMount mounts a file at another place. It returns "" and logs if this user may not.
func bindMount(t *testing.T, path string) string {
	at := tempFile(t, "mounted", nil)
	if out, err := exec.Command("mount", "--bind", path, at).CombinedOutput(); err != nil {
		t.Logf("without bind mounts: %v: %s", err, out)
		return ""
	}
	t.Cleanup(func() { exec.Command("umount", at).Run() })
	return at
}

// loopDevice makes a loop device over a file. It returns "" and logs if this user may not.
func loopDevice(t *testing.T, path string) string {
	out, err := exec.Command("losetup", "--find", "--show", path).Output()
	if err != nil {
		t.Logf("without loop devices: %v", err)
		return ""
	}
	name := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "--detach", name).Run() })
	return name
}

// plainFile makes a file of n zero bytes, a multiple of 512.
func plainFile(t *testing.T, n int) string { return tempFile(t, "file", make([]byte, n)) }

const tableSectors = 64

// tableOf returns a table with one layer.
func tableOf(base string, baseOff int, m, data string, dataOff int) string {
	return fmt.Sprintf("0 %d cow %s %d %s %s %d", tableSectors, base, baseOff, m, data, dataOff)
}

// TestTableSharesFiles: no part of a table may be a part of another disk, by any name.
func TestTableSharesFiles(t *testing.T) {
	s := newStore(t)
	base, m, data := plainFile(t, 1<<20), plainFile(t, 1<<20), plainFile(t, 1<<20)
	create(t, s, "a", CreateOptions{Table: tableOf(base, 0, m, data, 0)})
	put(t, s, "a", noise(1, 4096), 0)
	img := importRaw(t, s, "golden", noise(3, 1<<20))

	refused := func(what, table, other string) {
		t.Helper()
		_, err := s.Create(ctx, "b", CreateOptions{Table: table})
		if err == nil {
			t.Errorf("%s: expected a refusal, found a disk", what)
			test.Must(t, test.Err(s.Remove(ctx, "b")))
			return
		}
		if !errors.Is(err, ErrInUse) && !errors.Is(err, ErrRefused) &&
			!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), other) {
			t.Errorf("%s: expected a refusal that names %s, found %v", what, other, err)
		}
	}
	fresh := func() string { return plainFile(t, 1<<20) }
	for name, alias := range aliases(t, data) {
		refused("data by "+name, tableOf(fresh(), 0, fresh(), alias, 0), `disk "a"`)
		refused("overlapping data by "+name, tableOf(fresh(), 0, fresh(), alias, tableSectors-1),
			`disk "a"`)
		refused("writable data as base by "+name, tableOf(alias, 0, fresh(), fresh(), 0),
			`disk "a"`)
		refused("data as map by "+name, tableOf(fresh(), 0, alias, fresh(), 0), alias)
		if name != "loop device" { // a loop device cannot grow
			if _, err := s.Create(ctx, "beside", CreateOptions{Table: tableOf(fresh(), 0, fresh(),
				alias, tableSectors)}); err != nil {
				t.Errorf("the sectors behind it, by %s: %v", name, err)
			} else if _, err := s.Remove(ctx, "beside"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, alias := range aliases(t, m) {
		refused("map by "+name, tableOf(fresh(), 0, alias, fresh(), 0), `disk "a"`)
		refused("map as data by "+name, tableOf(fresh(), 0, fresh(), alias, 0), `disk "a"`)
	}
	for name, alias := range aliases(t, base) {
		refused("base as data by "+name, tableOf(fresh(), 0, fresh(), alias, 0), `disk "a"`)
		if _, err := s.Create(ctx, "b", CreateOptions{Table: tableOf(alias, 0, fresh(), fresh(),
			0)}); err != nil {
			t.Errorf("the same base by %s: %v", name, err)
		} else if _, err := s.Remove(ctx, "b"); err != nil {
			t.Fatal(err)
		}
	}
	for name, alias := range aliases(t, s.ImageData(img.Name)) {
		refused("golden image as data by "+name, tableOf(fresh(), 0, fresh(), alias, 0), "golden")
		refused("golden image as base by "+name, tableOf(alias, 0, fresh(), fresh(), 0), "golden")
		refused("golden image as map by "+name, tableOf(fresh(), 0, alias, fresh(), 0), "golden")
	}
	if got := content(t, s, "a"); string(got[:4096]) != string(noise(1, 4096)) {
		t.Error("disk a has changed")
	}
}

// TestTableNamesFileTwice: no two parts of one table overlap.
func TestTableNamesFileTwice(t *testing.T) {
	s := newStore(t)
	fresh := func() string { return plainFile(t, 1<<20) }
	for name := range aliases(t, fresh()) {
		two := func(change func(p map[string]string, alias string)) string {
			p := map[string]string{}
			for _, k := range []string{"base", "map1", "data1", "map2", "data2"} {
				p[k] = fresh()
			}
			f := fresh()
			change(p, f)
			al := aliases(t, f)[name]
			for k, v := range p {
				if v == "ALIAS" {
					p[k] = al
				}
			}
			return fmt.Sprintf("0 %d cow %s 0 %s %s 0 %s %s 0", tableSectors, p["base"], p["map1"],
				p["data1"], p["map2"], p["data2"])
		}
		for _, pair := range [][2]string{{"data1", "data2"}, {"map1", "map2"}, {"map1", "data1"},
			{"map2", "data1"}, {"base", "data1"}, {"base", "data2"}, {"base", "map1"}} {
			table := two(func(p map[string]string, f string) {
				p[pair[0]], p[pair[1]] = f, "ALIAS"
			})
			test.ErrorIs(t, test.Err(s.Create(ctx, "b", CreateOptions{Table: table})), ErrInvalid,
				fmt.Sprintf("%s and %s by %s", pair[0], pair[1], name))
		}
	}
	if disks, err := s.Disks(); err != nil || len(disks) != 0 {
		t.Errorf("disks after refusals: %v, %v", disks, err)
	}
}

// TestBaseInsideStore: a file of a store is refused as a base, by any name, because the store
// removes files without asking disks outside it.
func TestBaseInsideStore(t *testing.T) {
	s, other := newStore(t), newStore(t)
	for _, st := range []*Store{s, other} {
		importRaw(t, st, "golden", noise(3, 1<<20))
		create(t, st, "d", CreateOptions{From: "golden"})
	}
	for _, st := range []*Store{s, other} {
		d, err := st.Disk("d")
		test.Must(t, err)
		for _, path := range []string{st.ImageData("golden"), st.paths(d.Head()).Data,
			st.paths(d.Head()).Map} {
			for name, alias := range aliases(t, path) {
				if st == other && (name == "hard link" || name == "bind mount") &&
					filepath.Base(path) == dataFile {
					// nothing marks a file of another store; its locks do while it is in use
					continue
				}
				_, err := s.Create(ctx, "b", CreateOptions{Base: alias, Force: true})
				if !errors.Is(err, ErrRefused) {
					t.Errorf("%s by %s: expected %v, found %v", path, name, ErrRefused, err)
				}
				if st == s && path == st.ImageData("golden") &&
					(err == nil || !strings.Contains(err.Error(), "--from golden")) {
					t.Errorf("%s by %s: expected advice to use --from golden, found %v", path, name,
						err)
				}
			}
		}
	}
}

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

// TestTwoStoresOneFile: a process that has a file open excludes others, in whatever store.
func TestTwoStoresOneFile(t *testing.T) {
	a, b := newStore(t), newStore(t)
	base, m, data := plainFile(t, 1<<20), plainFile(t, 1<<20), plainFile(t, 1<<20)
	create(t, a, "a", CreateOptions{Table: tableOf(base, 0, m, data, 0)})
	names := aliases(t, data)
	for name, alias := range names {
		b2 := plainFile(t, 1<<20)
		create(t, b, "b", CreateOptions{Table: tableOf(b2, 0, plainFile(t, 1<<20), alias, 0)})
		oa := openDisk(t, a, "a")
		if o, err := b.OpenDisk(ctx, "b", OpenOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("data by %s: expected %v, found %v", name, ErrInUse, err)
			if err == nil {
				o.Close()
			}
		}
		test.ErrorIs(t, test.Err(b.Create(ctx, "c", CreateOptions{Base: alias})), ErrInUse,
			fmt.Sprintf("base on open data by %s", name))
		test.Must(t, oa.Close())
		ob := openDisk(t, b, "b")
		if o, err := a.OpenDisk(ctx, "a", OpenOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("the other way round, by %s: expected %v, found %v", name, ErrInUse, err)
			if err == nil {
				o.Close()
			}
		}
		test.Must(t, ob.Close())
		test.Must(t, test.Err(b.Remove(ctx, "b")))
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

// TestSealedLayersAreShared: many disks read one layer and one base. So does an older version,
// which locks only maps.
func TestSealedLayersAreShared(t *testing.T) {
	s := newStore(t)
	base := tempFile(t, "base", noise(1, 1<<20))
	create(t, s, "a", CreateOptions{Base: base})
	test.Must(t, test.Err(s.Promote(ctx, []string{"a"}, "t")))
	create(t, s, "b", CreateOptions{From: "a@t"})
	d, _ := s.Disk("b")
	oa := openDisk(t, s, "a")
	defer oa.Close()
	ob := openDisk(t, s, "b")
	defer ob.Close()
	old, err := vfs.OS{}.OpenFile(s.paths(&d.Layers[0]).Map, os.O_RDONLY, 0)
	test.Must(t, err)
	defer old.Close()
	if err := old.Lock(false); err != nil {
		t.Errorf("lock of an older version that reads a sealed layer: %v", err)
	}
}

// TestCheckFindsTwoOwners: check names both disks of a store that an earlier version has made in
// this way.
func TestCheckFindsTwoOwners(t *testing.T) {
	fresh := func() string { return plainFile(t, 1<<20) }
	for _, what := range []string{"data", "base", "none"} {
		data := fresh()
		for name, alias := range aliases(t, data) {
			s := newStore(t)
			create(t, s, "a", CreateOptions{Table: tableOf(fresh(), 0, fresh(), data, 0)})
			create(t, s, "b", CreateOptions{Table: tableOf(fresh(), 0, fresh(), fresh(), 0)})
			m := manifestOf(t, s, "b")
			switch what {
			case "data":
				m.Layers[0].Data = alias
			case "base":
				m.Base.Path = alias
			}
			test.Must(t, s.writeDocument(s.path(disksDir, "b", diskFile), m))
			for _, names := range [][]string{nil, {"a"}, {"b"}, {"a", "b"}} {
				r, err := s.Check(ctx, CheckOptions{Names: names})
				test.Must(t, err)
				found := 0
				for _, k := range r.Reports {
					for _, p := range k.Problems {
						if p.What == "owner of the file's bytes" &&
							p.Expected == `disk "a" alone` && strings.Contains(p.Found,
							`disk "b"`) {
							found++
						}
					}
				}
				if (found > 0) != (what != "none") {
					t.Errorf("%s by %s, check %v: expected a problem: %v, found %d", what, name,
						names, what != "none", found)
				}
				if found > 0 && r.Left() < 1 {
					t.Errorf("%s by %s, check %v: it does not count", what, name, names)
				}
			}
		}
	}
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

// TestImportOfOpenData: a file that a served disk writes to is imported only with --force-share.
func TestImportOfOpenData(t *testing.T) {
	s, other := newStore(t), newStore(t)
	base, data := plainFile(t, 1<<20), plainFile(t, 1<<20)
	create(t, s, "a", CreateOptions{Table: tableOf(base, 0, plainFile(t, 1<<20), data, 0)})
	own := create(t, s, "own", CreateOptions{Size: 1 << 20})
	for disk, path := range map[string]string{"a": data, "own": s.paths(own.Head()).Data} {
		for name, alias := range aliases(t, path) {
			o := openDisk(t, s, disk)
			if _, err := other.Import(ctx, alias, "img",
				ImportOptions{Format: imagefile.Raw}); !errors.Is(err, ErrInUse) &&
				!(errors.Is(err, ErrRefused) && alias == path+".hard" && disk == "own") {
				t.Errorf("data of an open disk by %s: expected %v, found %v", name, ErrInUse, err)
			}
			if name == "same path" {
				if _, err := other.Import(ctx, alias, "forced-"+disk,
					ImportOptions{Format: imagefile.Raw, ForceShare: true}); err != nil {
					t.Errorf("--force-share: %v", err)
				}
			}
			if _, err := other.Import(ctx, base, "base-"+disk+strings.ReplaceAll(name, " ", "-"),
				ImportOptions{Format: imagefile.Raw}); err != nil {
				t.Errorf("the base of an open disk: %v", err)
			}
			test.Must(t, o.Close())
		}
	}
}

// TestBesideABaseInAFile: writes to a regular file change the time that shows whether a base in it
// is unchanged.
func TestBesideABaseInAFile(t *testing.T) {
	s := newStore(t)
	fresh := func() string { return plainFile(t, 1<<20) }
	base := fresh()
	test.ErrorIs(t, test.Err(s.Create(ctx, "a", CreateOptions{Table: tableOf(base, 0, fresh(), base,
		2*tableSectors)})), ErrInvalid, "data behind the base in one file")
	create(t, s, "a", CreateOptions{Table: tableOf(base, 0, fresh(), fresh(), 0)})
	test.ErrorIs(t, test.Err(s.Create(ctx, "b", CreateOptions{Table: tableOf(fresh(), 0, fresh(),
		base, 2*tableSectors)})), ErrInUse, "data behind another disk's base in one file")
}

// TestBehindASmallerLayer: a larger clone does not make the layers below it larger.
func TestBehindASmallerLayer(t *testing.T) {
	s := newStore(t)
	fresh := func() string { return plainFile(t, 1<<20) }
	data := fresh()
	create(t, s, "a", CreateOptions{Table: tableOf(fresh(), 0, fresh(), data, 0)})
	test.Must(t, test.Err(s.Promote(ctx, []string{"a"}, "t")))
	create(t, s, "larger", CreateOptions{From: "a@t", Size: 4 * tableSectors * layer.SectorSize})
	create(t, s, "b", CreateOptions{Table: tableOf(fresh(), 0, fresh(), data, tableSectors)})
	one := openDisk(t, s, "larger")
	defer one.Close()
	two := openDisk(t, s, "b")
	defer two.Close()
	r, err := s.Check(ctx, CheckOptions{})
	if err != nil || r.Left() != 0 {
		t.Errorf("check: expected nothing, found %+v, %v", r, err)
	}
}
