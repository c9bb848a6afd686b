package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow/layer"
	"cowblk/internal/test"
)

// rotatedTable is a disk of two layers outside the store, both sealed and with data checksums, and
// a head in it.
func rotatedTable(t *testing.T) (*Store, *tableFiles, *Manifest) {
	t.Helper()
	s, f := newStore(t), newTableFiles(t)
	create(t, s, "old", CreateOptions{Table: f.one()})
	put(t, s, "old", noise(2, 5120), 512)
	test.Must(t, test.Err(s.Remove(ctx, "old")))
	create(t, s, "vm", CreateOptions{Table: f.two()})
	put(t, s, "vm", noise(3, 5120), 65536)
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm"}, "t")))
	before := snapshot(t, f.dir)
	o := openDisk(t, s, "vm")
	test.Must(t, errors.Join(o.Disk.AddChecksums(ctx, nil), o.Close()))
	sameFiles(t, before, snapshot(t, f.dir))
	m := manifestOf(t, s, "vm")
	return s, f, m
}

// The data checksums of layers outside the store are files of the store, whatever follows their
// bitmaps.
func TestSumsOfTable(t *testing.T) {
	s, f, m := rotatedTable(t)
	for _, l := range m.Sealed() {
		if _, err := os.Stat(s.paths(&l).Checksums); err != nil {
			t.Error(err)
		}
	}
	full := CheckOptions{Depth: CheckFull}
	if r := check(t, s, full); r.Found != 0 || len(r.Reports[0].Notes) != 0 {
		t.Errorf("%+v", r.Reports[0])
	}
	sums := s.paths(&m.Layers[0]).Checksums
	whole := readFile(t, sums)

	data := f.path("wdata")
	flip(t, data, f.dataOff*512+4096+5)
	o := openDisk(t, s, "vm")
	if _, err := o.Disk.ReadAt(make([]byte, 512), 4096+512); !errors.Is(err, layer.ErrDamaged) ||
		!strings.Contains(err.Error(), data) {
		t.Errorf("damaged data: %v", err)
	}
	test.Must(t, o.Close())
	r := check(t, s, full)
	if r.Found != 1 || r.Reports[0].Problems[0].File != data {
		t.Errorf("damaged data: %+v", r.Reports[0].Problems)
	}
	flip(t, data, f.dataOff*512+4096+5)

	for _, at := range []int64{9, 4096 + 5} {
		flip(t, sums, at)
		r := check(t, s, CheckOptions{Repair: true})
		if r.Found != 1 || r.Repaired != 1 || r.Reports[0].Problems[0].File != sums {
			t.Errorf("byte %d of the sums: %+v", at, r.Reports[0].Problems)
		}
		if got, err := os.ReadFile(sums); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("byte %d of the sums: not what it was, %v", at, err)
		}
	}
	flip(t, sums, 9)
	if _, err := s.OpenDisk(ctx, "vm", OpenOptions{}); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), sums) {
		t.Errorf("a damaged header of the sums: %v", err)
	}
	// Follow the error's advice.
	test.Must(t, os.Remove(sums))
	o = openDisk(t, s, "vm")
	test.Must(t, errors.Join(o.Disk.AddChecksums(ctx, nil), o.Close()))
	if got, err := os.ReadFile(sums); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("made anew: not what it was, %v", err)
	}
}

// They are removed with the last disk on the layer, and the layer stays.
func TestSumsOfTableAreRemoved(t *testing.T) {
	s, f, m := rotatedTable(t)
	create(t, s, "clone", CreateOptions{From: "vm@t"})
	before := snapshot(t, f.dir)
	for _, name := range []string{"vm", "clone"} {
		for _, l := range m.Sealed() {
			if _, err := os.Stat(s.paths(&l).Checksums); err != nil {
				t.Error(err)
			}
		}
		if r, err := s.Remove(ctx, name); err != nil || len(r.Layers) != 1 || len(r.Kept) != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	sameFiles(t, before, snapshot(t, f.dir))
	if left, err := os.ReadDir(filepath.Join(s.dir, layersDir)); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
	if r := check(t, s, CheckOptions{}); r.Found != 0 {
		t.Errorf("%+v", r)
	}
}
