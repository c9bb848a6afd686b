package store

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

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
