package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/cow"
	"cowblk/internal/test"
)

const imageSize = 1<<20 + 512

func TestCreateAndPromote(t *testing.T) {
	s := newStore(t)
	base := sparse(imageSize, 0, 500000)
	importRaw(t, s, "img", base)
	m := create(t, s, "vm1", CreateOptions{From: "img"})
	if m.Size != imageSize || m.BlockSize != 4096 || len(m.Layers) != 1 || m.Base.Image != "img" {
		t.Fatalf("manifest %+v", m)
	}
	wantContent(t, s, "vm1", base, "a new disk does not read as its image")
	put(t, s, "vm1", noise(10, 6144), 3*512)
	want1 := append([]byte(nil), base...)
	copy(want1[3*512:], noise(10, 6144))
	wantContent(t, s, "vm1", want1, "a disk does not hold what was written")

	done, err := s.Promote(ctx, []string{"vm1"}, "configured")
	test.Must(t, err)
	p := done[0]
	if p.Depth != 2 || p.Tag != "configured" {
		t.Errorf("promotion %+v", p)
	}
	m, err = s.Disk("vm1")
	if err != nil || len(m.Layers) != 2 || m.Layers[0].UUID != p.Sealed ||
		m.Head().UUID != p.Head || m.Layers[0].Tag != "configured" || m.Layers[0].Sealed == nil {
		t.Fatalf("manifest %+v, %v", m, err)
	}
	if u, err := s.LayerUsage(&m.Layers[0]); err != nil || u.State != "sealed" || u.Blocks == 0 {
		t.Errorf("sealed layer %+v, %v", u, err)
	}
	test.ErrorIs(t, test.Err(s.Promote(ctx, []string{"vm1"}, "configured")), ErrExists,
		"tag given twice")
	if p, err := s.Promote(ctx, []string{"vm1"}, ""); err != nil || p[0].Tag != "20061127T120000Z" {
		t.Errorf("default tag: %+v, %v", p, err)
	}

	create(t, s, "vm2", CreateOptions{From: "vm1@configured", Size: 2 << 20})
	put(t, s, "vm1", noise(11, 4096), 0)
	put(t, s, "vm2", noise(12, 4096), 1<<20+4096)
	got2 := content(t, s, "vm2")
	want2 := append(append([]byte(nil), want1...), make([]byte, 2<<20-imageSize)...)
	copy(want2[1<<20+4096:], noise(12, 4096))
	if !bytes.Equal(got2, want2) {
		t.Error("a clone is not what its tag held, plus what it wrote")
	}

	t.Run("remove", func(t *testing.T) {
		shared := m.Layers[0].UUID
		r, err := s.Remove(ctx, "vm1")
		if err != nil || len(r.Kept) != 1 || r.Kept[0] != shared || len(r.Layers) != 2 {
			t.Fatalf("removal %+v, %v", r, err)
		}
		wantContent(t, s, "vm2", want2, "removing a disk changed its clone")
		if _, err := s.Remove(ctx, "img"); !errors.Is(err, ErrInUse) ||
			!strings.Contains(err.Error(), "vm2") {
			t.Errorf("image in use: %v", err)
		}
		if r, err := s.Remove(ctx, "vm2"); err != nil || len(r.Kept) != 0 || len(r.Layers) != 2 {
			t.Errorf("removal %+v, %v", r, err)
		}
		if r, err := s.Remove(ctx, "img"); err != nil || r.Kind != "image" || r.Freed == 0 {
			t.Errorf("removal %+v, %v", r, err)
		}
		nothingLeft(t, s)
		test.ErrorIs(t, test.Err(s.Remove(ctx, "img")), ErrNotFound, "removed twice")
	})
}

func TestCreateRefused(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "img", noise(1, imageSize))
	create(t, s, "vm1", CreateOptions{From: "img"})
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
	qcow2 := tempFile(t, "x.qcow2", buildQcow2(qcow2File{clusterBits: 9, size: 4096}))
	odd := tempFile(t, "odd", make([]byte, 1000))
	before := snapshot(t, s.Dir())
	tests := []struct {
		name string
		o    CreateOptions
		as   error
		text string
	}{
		{"nothing", CreateOptions{}, ErrInvalid, "--size 20G"},
		{"two things", CreateOptions{From: "img", Base: odd}, ErrInvalid, "only one"},
		{"odd size", CreateOptions{Size: 1000}, ErrInvalid, "512"},
		{"negative size", CreateOptions{Size: -512}, ErrInvalid, "512"},
		{"too large", CreateOptions{Size: 1<<60 + 512}, ErrInvalid, "largest"},
		{"smaller than the image", CreateOptions{From: "img", Size: 512}, ErrInvalid,
			"smaller than img"},
		{"smaller than the tag", CreateOptions{From: "vm1@t", Size: 512}, ErrInvalid,
			"smaller than vm1@t"},
		{"block size", CreateOptions{From: "img", BlockSize: 5000}, ErrInvalid, "power of two"},
		{"block size too large", CreateOptions{From: "img", BlockSize: 131072}, ErrInvalid,
			"power of two"},
		{"another block size than the tag's", CreateOptions{From: "vm1@t", BlockSize: 512},
			ErrInvalid, "same"},
		{"no such image", CreateOptions{From: "nosuch"}, ErrNotFound, "cowblk list"},
		{"no such tag", CreateOptions{From: "vm1@x"}, ErrNotFound, "the tags t"},
		{"no such disk", CreateOptions{From: "vm9@t"}, ErrNotFound, "vm9"},
		{"a disk without tag", CreateOptions{From: "vm1"}, ErrInvalid, "promote"},
		{"a bad reference", CreateOptions{From: "../x"}, ErrInvalid, "not allowed"},
		{"base is qcow2", CreateOptions{Base: qcow2}, ErrRefused, "cowblk import"},
		{"base of odd size", CreateOptions{Base: odd}, ErrRefused, "truncate -s %512"},
		{"no such base", CreateOptions{Base: odd + "x"}, os.ErrNotExist, "odd"},
		{"base is a directory", CreateOptions{Base: t.TempDir()}, nil, "regular file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Create(ctx, "new", tt.o)
			if err == nil || tt.as != nil && !errors.Is(err, tt.as) ||
				!strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.as, tt.text)
			}
		})
	}
	sameFiles(t, before, snapshot(t, s.Dir()))
}

func TestCreateOnNothing(t *testing.T) {
	s := newStore(t)
	for _, block := range []int{512, 4096, 65536} {
		name := map[int]string{512: "a", 4096: "b", 65536: "c"}[block]
		create(t, s, name, CreateOptions{Size: 1 << 20, BlockSize: block})
		put(t, s, name, noise(1, 4096), 512)
		got := content(t, s, name)
		want := make([]byte, 1<<20)
		copy(want[512:], noise(1, 4096))
		if !bytes.Equal(got, want) {
			t.Errorf("block size %d: wrong content", block)
		}
	}
}

// An image whose time has changed is hashed again, once.
func TestImageTouched(t *testing.T) {
	s := newStore(t)
	img := importRaw(t, s, "img", noise(1, imageSize))
	create(t, s, "vm1", CreateOptions{From: "img"})
	now := time.Unix(1e9, 5)
	test.Must(t, os.Chtimes(s.ImageData("img"), now, now))
	content(t, s, "vm1")
	again, err := s.Image("img")
	if err != nil || again.Identity.MTime != now.UnixNano() ||
		again.ChunkSHA256 != img.ChunkSHA256 {
		t.Errorf("recorded %+v, %v", again, err)
	}
}

// Images of earlier versions have a SHA-256 of the whole and no chunk digest. Open and check
// compare that digest and do not change the image.
func TestImageOfEarlierVersion(t *testing.T) {
	s := newStore(t)
	data := sparse(imageSize, 4096)
	img := importRaw(t, s, "img", data)
	img.SHA256, img.ChunkSHA256 = sum(data), ""
	test.Must(t, s.writeDocument(s.path(imagesDir, "img", imageFile), img))
	create(t, s, "vm1", CreateOptions{From: "img"})
	if r := check(t, s, CheckOptions{Depth: CheckFull}); r.Found != 0 {
		t.Errorf("check: %+v", r)
	}
	touch := func(sec int64) {
		test.Must(t, os.Chtimes(s.ImageData("img"), time.Unix(sec, 0), time.Unix(sec, 0)))
	}
	touch(1e9)
	content(t, s, "vm1")
	if again, err := s.Image("img"); err != nil || again.SHA256 != img.SHA256 ||
		again.ChunkSHA256 != "" {
		t.Errorf("recorded %+v, %v", again, err)
	}
	os.Chmod(s.ImageData("img"), 0o600)
	flip(t, s.ImageData("img"), 9000)
	touch(2e9)
	if _, err := s.OpenDisk(ctx, "vm1", OpenOptions{}); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), "SHA-256 of the image") {
		t.Errorf("another content was accepted: %v", err)
	}
}

// image.json of an earlier version is read. One without any digest is refused.
func TestImageDigestsWanted(t *testing.T) {
	s := newStore(t)
	img := importRaw(t, s, "img", noise(1, 512))
	for _, set := range []func(m *Image){
		func(m *Image) { m.ChunkSHA256 = "" },
		func(m *Image) { m.ChunkSHA256 = m.ChunkSHA256[1:] },
		func(m *Image) { m.SHA256 = strings.ToUpper(m.ChunkSHA256) },
	} {
		m := *img
		set(&m)
		if err := m.check("img"); err == nil {
			t.Errorf("accepted %+v", m)
		}
	}
}

func TestTrustBase(t *testing.T) {
	s := newStore(t)
	base := tempFile(t, "base", noise(1, imageSize))
	create(t, s, "vm1", CreateOptions{Base: base})
	os.Chtimes(base, time.Time{}, time.Unix(1e9, 0))
	test.Must(t, test.Err(s.TrustBase(ctx, "vm1")))
	content(t, s, "vm1")
	write(t, base, noise(2, imageSize))
	test.ErrorIs(t, test.Err(s.TrustBase(ctx, "vm1")), ErrRefused, "another content was trusted")
	create(t, s, "zeros", CreateOptions{Size: 512})
	test.ErrorIs(t, test.Err(s.TrustBase(ctx, "zeros")), ErrInvalid, "no base")
}

func TestBaseInPlaceStaysAsItIs(t *testing.T) {
	s := newStore(t)
	base := tempFile(t, "base", noise(1, imageSize))
	before := snapshot(t, filepath.Dir(base))
	create(t, s, "vm1", CreateOptions{Base: base, Size: 4 << 20})
	put(t, s, "vm1", noise(2, 100<<10), 512)
	want := append(noise(1, imageSize), make([]byte, 4<<20-imageSize)...)
	copy(want[512:], noise(2, 100<<10))
	wantContent(t, s, "vm1", want, "the disk does not hold what was written over its base")
	sameFiles(t, before, snapshot(t, filepath.Dir(base)))
}

func TestReadOnlyOpen(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	put(t, s, "vm1", noise(1, 4096), 0)
	before := snapshot(t, s.Dir())
	o, err := s.OpenDisk(ctx, "vm1", OpenOptions{ReadOnly: true})
	test.Must(t, err)
	test.ErrorIs(t, test.Err(o.Disk.WriteAt(noise(2, 512), 0)), cow.ErrReadOnly, "write")
	test.Must(t, o.Close())
	sameFiles(t, before, snapshot(t, s.Dir()))
}

// Preflight of a disk with one layer, which has none below its head, on each kind of base.
func TestPreflightOfOneLayer(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "img", noise(1, 1<<20))
	base := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(base, noise(2, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]CreateOptions{"zeros": {Size: 1 << 20}, "image": {From: "img"},
		"file": {Base: base}} {
		create(t, s, name, o)
		if err := s.Preflight(t.Context(), name, cow.Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
