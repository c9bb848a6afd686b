package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow/imagefile"
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
