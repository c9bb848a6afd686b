package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"cowblk/cow/imagefile"
	"cowblk/internal/test"
)

func TestImport(t *testing.T) {
	const size = 5<<20 + 512
	want := sparse(size, 0, 1<<20-100, 3<<20+4096, size-700)
	dir := t.TempDir()
	// A backing image with small clusters: one that contains data follows one that does not. A
	// reader that uses the first small cluster's state for the whole large cluster loses the data.
	under := append([]byte(nil), want...)
	clear(under[1<<20:])
	over := append([]byte(nil), want...)
	clear(over[:1<<20])
	write(t, filepath.Join(dir, "under.qcow2"), buildQcow2(qcow2File{clusterBits: 12, size: size,
		data: under}))
	write(t, filepath.Join(dir, "under.raw"), under[:1<<20])
	tests := []struct {
		name    string
		data    []byte
		format  string
		backing int
	}{
		{"raw", want, imagefile.Raw, 0},
		{"qcow2", buildQcow2(qcow2File{clusterBits: 16, size: size, data: want}), imagefile.Qcow2,
			0},
		{"qcow2-small-clusters", buildQcow2(qcow2File{clusterBits: 9, size: size, data: want}),
			imagefile.Qcow2, 0},
		{"qcow2-compressed", buildQcow2(qcow2File{clusterBits: 16, size: size, data: want,
			compressed: true}), imagefile.Qcow2, 0},
		{"qcow2-over-qcow2", buildQcow2(qcow2File{clusterBits: 16, size: size, data: over,
			backing: "under.qcow2", backingFmt: "qcow2"}), imagefile.Qcow2, 1},
		{"qcow2-over-short-raw", buildQcow2(qcow2File{clusterBits: 16, size: size, data: over,
			backing: "under.raw", backingFmt: "raw"}), imagefile.Qcow2, 1},
	}
	s := newStore(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := write(t, filepath.Join(dir, tt.name), tt.data)
			var phases []string
			img, err := s.Import(ctx, src, tt.name, ImportOptions{Backing: true, SHA256: true,
				Progress: func(phase string, done, total int64) {
					if done == total {
						phases = append(phases, phase)
					}
					if total != size || done > total {
						t.Errorf("progress %s: %d of %d", phase, done, total)
					}
				}})
			test.Must(t, err)
			got := readFile(t, s.ImageData(tt.name))
			if !bytes.Equal(got, want) {
				t.Error("the image's content is not the source's")
			}
			if img.ChunkSHA256 != chunkSum(want) || len(img.Backing) != tt.backing {
				t.Errorf("chunk digest %s, want %s; backing files %v", img.ChunkSHA256,
					chunkSum(want), img.Backing)
			}
			if img.SHA256 != sum(want) || img.Size != size || img.Format != tt.format {
				t.Errorf("image %+v, want SHA-256 %s", img, sum(want))
			}
			if a := s.allocated(s.ImageData(tt.name)); a == 0 || a > size/2 {
				t.Errorf("%d bytes allocated for %d bytes of which most are zeros", a, size)
			}
			if strings.Join(phases, " ") != "copy verify" {
				t.Errorf("phases %v", phases)
			}
			if again, err := s.Image(tt.name); err != nil || !reflect.DeepEqual(again, img) {
				t.Errorf("read back %+v, %v", again, err)
			}
			if st, err := os.Stat(s.ImageData(tt.name)); err != nil || st.Mode().Perm() != 0o400 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
		})
	}
}

func TestImportRefused(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop.qcow2")
	good := qcow2File{clusterBits: 16, size: 1 << 20, data: noise(1, 4096)}
	withBacking := func(name, format string) []byte {
		f := good
		f.backing, f.backingFmt = name, format
		return buildQcow2(f)
	}
	patch := func(off int, b ...byte) []byte {
		p := buildQcow2(good)
		copy(p[off:], b)
		return p
	}
	tests := []struct {
		name string
		data []byte
		as   error
		text string
	}{
		{"no multiple of 512", make([]byte, 1000), ErrRefused, "truncate -s %512"},
		{"empty", nil, ErrRefused, "positive multiple"},
		{"vmdk", append([]byte("KDMV"), make([]byte, 1020)...), ErrRefused,
			"qemu-img convert -f vmdk"},
		{"backing file loop", withBacking(loop, "qcow2"), ErrRefused,
			"another file than those above it"},
		{"backing file missing", withBacking("nosuch", "raw"), ErrRefused, "nosuch"},
		{"backing format unknown", withBacking(tempFile(t, "b", make([]byte, 512)), "vdi"),
			ErrRefused, "vdi"},
		{"backing format not given", withBacking(tempFile(t, "b", make([]byte, 512)), ""),
			ErrRefused, "qemu-img rebase"},
		{"backing file is a directory", withBacking(dir, "raw"), ErrRefused, "regular file"},
		{"qcow2 version 9", patch(7, 9), ErrRefused, "version: expected 2 or 3, found 9"},
		{"qcow2 clusters of 2^40", patch(23, 40), ErrRefused, "2^40"},
		{"qcow2 huge L1", patch(36, 0xff, 0xff, 0xff, 0xff), ErrRefused, "L1 table"},
		{"qcow2 marked corrupt", patch(79, 2), ErrRefused, "corrupt"},
		{"qcow2 encrypted", patch(35, 1), ErrRefused, "encryption"},
		{"qcow2 external data", patch(79, 4), ErrRefused, "external data"},
		{"qcow2 header cut", buildQcow2(good)[:60], ErrRefused, "header"},
		{"qcow2 data cut", buildQcow2(good)[:4<<16-1000], ErrRefused, "not copied to its end"},
	}
	write(t, loop, withBacking(loop, "qcow2"))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Import(ctx, tempFile(t, "src", tt.data), "img", ImportOptions{})
			if err == nil || tt.as != nil && !errors.Is(err, tt.as) ||
				!strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.as, tt.text)
			}
			nothingLeft(t, s)
		})
	}
}

// nothingLeft checks that a store has no image, disk, layer or work in progress.
func nothingLeft(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{imagesDir, disksDir, layersDir, tmpDir} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("left behind: %s/%s", dir, e.Name())
		}
	}
}

func TestImportInterrupted(t *testing.T) {
	for _, phase := range []string{PhaseCopy, PhaseVerify} {
		t.Run(phase, func(t *testing.T) {
			s := newStore(t)
			ctx, cancel := context.WithCancel(ctx)
			_, err := s.Import(ctx, tempFile(t, "src", noise(1, 3<<20)), "img",
				ImportOptions{Progress: func(p string, done, total int64) {
					if p == phase {
						cancel()
					}
				}})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v", err)
			}
			nothingLeft(t, s)
		})
	}
}

func TestImportSourceChanges(t *testing.T) {
	s := newStore(t)
	src := tempFile(t, "src", noise(1, 3<<20))
	_, err := s.Import(ctx, src, "img", ImportOptions{Progress: func(_ string, done, _ int64) {
		if done == 1<<20 {
			write(t, src, noise(2, 3<<20+512))
		}
	}})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "written to while") {
		t.Fatalf("error %v", err)
	}
	nothingLeft(t, s)
}

func TestImportNameTaken(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "img", noise(1, 512))
	create(t, s, "vm1", CreateOptions{From: "img"})
	for _, name := range []string{"img", "vm1"} {
		test.ErrorIs(t, test.Err(s.Import(ctx, tempFile(t, "src", noise(1, 512)), name,
			ImportOptions{})), ErrExists, fmt.Sprintf("import as %s", name))
		if _, err := s.Create(ctx, name, CreateOptions{Size: 512}); !errors.Is(err, ErrExists) {
			t.Errorf("create %s: %v", name, err)
		}
	}
}
