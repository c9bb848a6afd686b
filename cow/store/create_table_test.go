package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow/layer"
	"cowblk/internal/test"
)

// tableFiles are the files of a table: a base, and maps and data areas of two layers.
type tableFiles struct {
	dir                  string
	base                 []byte // the whole file
	sectors, baseOffset  int64
	dataOffset1, dataOff int64
}

func newTableFiles(t *testing.T) *tableFiles {
	f := &tableFiles{dir: t.TempDir(), sectors: 1001, baseOffset: 7, dataOffset1: 3, dataOff: 2000}
	f.base = noise(1, int(f.baseOffset+f.sectors+5)*512)
	write(t, f.path("base"), f.base)
	for _, name := range []string{"rmap", "wmap"} {
		write(t, f.path(name), make([]byte, 16384))
	}
	write(t, f.path("rdata"), nil)
	write(t, f.path("wdata"), noise(9, 4096)) // bytes before DATA_OFFSET are not the layer's
	return f
}

func (f *tableFiles) path(name string) string { return filepath.Join(f.dir, name) }

func (f *tableFiles) one() string {
	return fmt.Sprintf("63 %d cow %s %d %s %s %d", f.sectors, f.path("base"), f.baseOffset,
		f.path("wmap"), f.path("wdata"), f.dataOff)
}

func (f *tableFiles) two() string {
	return fmt.Sprintf("63 %d cow %s %d %s %s %d %s %s %d", f.sectors, f.path("base"), f.baseOffset,
		f.path("wmap"), f.path("wdata"), f.dataOff, f.path("rmap"), f.path("rdata"), f.dataOffset1)
}

// want returns the content of a fresh disk.
func (f *tableFiles) want() []byte {
	return append([]byte(nil), f.base[f.baseOffset*512:][:f.sectors*512]...)
}

func TestTable(t *testing.T) {
	s := newStore(t)
	f := newTableFiles(t)
	m := create(t, s, "old", CreateOptions{Table: f.one()})
	if m.Size != f.sectors*512 || m.TableStart != 63 || m.Base.Offset != f.baseOffset*512 ||
		m.Head().DataOffset != f.dataOff*512 {
		t.Fatalf("manifest %+v", m)
	}
	want := f.want()
	wantContent(t, s, "old", want, "a new disk does not read as its base from the offset on")
	put(t, s, "old", noise(2, 5120), 512)
	copy(want[512:], noise(2, 5120))
	wantContent(t, s, "old", want, "the disk does not hold what was written")
	data, _ := os.ReadFile(f.path("wdata"))
	if !bytes.Equal(data[:4096], noise(9, 4096)) {
		t.Error("something was written before DATA_OFFSET")
	}
	if !bytes.Equal(data[f.dataOff*512+512:][:5120], noise(2, 5120)) {
		t.Error("block i of the layer is not at DATA_OFFSET plus i blocks")
	}

	// A writable layer belongs to one disk.
	if _, err := s.Create(ctx, "other", CreateOptions{Table: f.one()}); !errors.Is(err, ErrInUse) ||
		!strings.Contains(err.Error(), `"old"`) {
		t.Errorf("second disk on the same map: %v", err)
	}

	// Removing the disk leaves the files. The same table finds the layer again, which is how dm-cow
	// loads a table.
	before := snapshot(t, f.dir)
	if r, err := s.Remove(ctx, "old"); err != nil || len(r.Layers) != 0 || len(r.Kept) != 1 {
		t.Fatalf("removal %+v, %v", r, err)
	}
	sameFiles(t, before, snapshot(t, f.dir))
	create(t, s, "again", CreateOptions{Table: f.one()})
	wantContent(t, s, "again", want, "the layer's content is lost")

	// The RFC's rotation: the first W becomes an R and a new W is added on top.
	test.Must(t, test.Err(s.Remove(ctx, "again")))
	m = create(t, s, "rotated", CreateOptions{Table: f.two()})
	if len(m.Layers) != 2 {
		t.Fatalf("manifest %+v", m)
	}
	put(t, s, "rotated", noise(3, 512), 1000*512)
	copy(want[1000*512:], noise(3, 512))
	wantContent(t, s, "rotated", want, "two layers do not read as the last writes")
	if h, err := layer.ReadHeader(s.fs, f.path("wmap")); err != nil || h.State != layer.Sealed {
		t.Errorf("the former W is %v, %v; want sealed", h.State, err)
	}

	// A promotion puts the store's own layer on top.
	test.Must(t, test.Err(s.Promote(ctx, []string{"rotated"}, "t")))
	create(t, s, "clone", CreateOptions{From: "rotated@t"})
	wantContent(t, s, "clone", want, "a clone of a table's layers reads something else")
	if b, _ := os.ReadFile(f.path("base")); !bytes.Equal(b, f.base) {
		t.Error("the base was written to")
	}
}

func TestTableFormatsReadOnlyLayers(t *testing.T) {
	s := newStore(t)
	f := newTableFiles(t)
	create(t, s, "old", CreateOptions{Table: f.two(), BlockSize: 512})
	wantContent(t, s, "old", f.want(), "two empty layers do not read as the base")
	if h, err := layer.ReadHeader(s.fs, f.path("wmap")); err != nil || h.State != layer.Sealed ||
		h.BlockSize != 512 {
		t.Errorf("lower layer %+v, %v", h, err)
	}
}

func TestTableRefused(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, s *Store, f *tableFiles) (line string)
		as      error
		text    string
		force   bool // --force makes it succeed
	}{
		{"map holds something", func(t *testing.T, s *Store, f *tableFiles) string {
			write(t, f.path("wmap"), append(make([]byte, 4097), 1))
			return f.one()
		}, ErrRefused, "something else at offset 4097", true},
		{"second map holds something: the first is not formatted", func(t *testing.T, s *Store,
			f *tableFiles) string {
			write(t, f.path("rmap"), noise(1, 8192))
			return f.two()
		}, ErrRefused, "rmap", true},
		{"damaged map", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.one()})
			s.Remove(ctx, "x")
			flip(t, f.path("wmap"), 100)
			return f.one()
		}, ErrRefused, "checksum", true},
		{"layers in the wrong order", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.two()})
			s.Remove(ctx, "x")
			return fmt.Sprintf("63 %d cow %s %d %s %s %d %s %s %d", f.sectors, f.path("base"),
				f.baseOffset,
				f.path("rmap"), f.path("rdata"), f.dataOffset1, f.path("wmap"), f.path("wdata"),
				f.dataOff)
		}, ErrRefused, "oldest first", true},
		{"another base", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.one()})
			s.Remove(ctx, "x")
			write(t, f.path("base"), noise(2, len(f.base)))
			return f.one()
		}, ErrRefused, "fingerprint of the layer's base", true},
		{"another base offset", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.one()})
			s.Remove(ctx, "x")
			f.baseOffset++
			return f.one()
		}, ErrRefused, "offset", true},
		{"another data offset", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.one()})
			s.Remove(ctx, "x")
			f.dataOff++
			return f.one()
		}, ErrRefused, "DATA_OFFSET", true},
		{"another length", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.one()})
			s.Remove(ctx, "x")
			f.sectors--
			return f.one()
		}, ErrRefused, "LENGTH", true},
		{"last layer is sealed", func(t *testing.T, s *Store, f *tableFiles) string {
			create(t, s, "x", CreateOptions{Table: f.two()})
			s.Remove(ctx, "x")
			return f.one()
		}, ErrRefused, "new map", true},
		{"base too small", func(t *testing.T, s *Store, f *tableFiles) string {
			f.baseOffset += 6
			return f.one()
		}, ErrRefused, "BASE_OFFSET + LENGTH", false},
		{"map missing", func(t *testing.T, s *Store, f *tableFiles) string {
			os.Remove(f.path("wmap"))
			return f.one()
		}, os.ErrNotExist, "wmap", false},
		{"data missing", func(t *testing.T, s *Store, f *tableFiles) string {
			os.Remove(f.path("wdata"))
			return f.one()
		}, os.ErrNotExist, "wdata", false},
		{"one map by two names", func(t *testing.T, s *Store, f *tableFiles) string {
			os.Remove(f.path("rmap"))
			os.Link(f.path("wmap"), f.path("rmap"))
			return f.two()
		}, ErrInvalid, "same bytes of one file", false},
		{"one map by two spellings", func(t *testing.T, s *Store, f *tableFiles) string {
			return strings.Replace(f.two(), "/rmap", "/./wmap", 1)
		}, ErrInvalid, "named twice", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			f := newTableFiles(t)
			line := tt.prepare(t, s, f)
			before := snapshot(t, f.dir)
			_, err := s.Create(ctx, "old", CreateOptions{Table: line})
			if !errors.Is(err, tt.as) || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want %v with %q", err, tt.as, tt.text)
			}
			sameFiles(t, before, snapshot(t, f.dir))
			_, err = s.Create(ctx, "old", CreateOptions{Table: line, Force: true})
			if (err == nil) != tt.force {
				t.Fatalf("with force: %v", err)
			}
			if tt.force {
				content(t, s, "old")
			}
		})
	}
}
