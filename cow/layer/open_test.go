package layer

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// snapshot is the state that a refused open must not change.
type snapshot struct {
	content string
	mtime   time.Time
	size    int64
}

func snap(t *testing.T, names ...string) map[string]snapshot {
	t.Helper()
	out := map[string]snapshot{}
	for _, name := range names {
		st, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		test.Must(t, err)
		content := readFile(t, name)
		out[name] = snapshot{string(content), st.ModTime(), st.Size()}
	}
	return out
}

// rewriteHeader changes a header in the file and gives it a valid checksum.
func rewriteHeader(t *testing.T, name string, change func(*[SectorSize]byte)) {
	t.Helper()
	content := readFile(t, name)
	sector := (*[SectorSize]byte)(content)
	change(sector)
	putChecksum(sector)
	test.Must(t, os.WriteFile(name, content, 0o600))
}

func flip(t *testing.T, name string, off int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	var b [1]byte
	test.Must(t, test.Err(f.ReadAt(b[:], off)))
	b[0] ^= 0x10
	test.Must(t, test.Err(f.WriteAt(b[:], off)))
}

func TestOpenRefuses(t *testing.T) {
	const size, owned = 1<<20 + 512, 200 // 257 blocks of 4 KiB, the last partial
	id, parent := uuid.New(), uuid.New()
	anyOther := uuid.MustParse("ffffffff-0000-4000-8000-000000000000")
	none := uuid.Nil
	for _, c := range []struct {
		name   string
		sealed bool
		open   OpenParams
		change func(t *testing.T, p *Paths)
		want   error
		text   []string // besides the path of the map
	}{
		{"no map", false, OpenParams{}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Remove(p.Map))
		}, fs.ErrNotExist, nil},
		{"no data", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Remove(p.Data))
		}, fs.ErrNotExist, nil},
		{"empty map", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Map, 0))
		}, ErrNotLayer, []string{"expected 512 bytes, found 0"}},
		{"short header", true, OpenParams{}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Map, 511))
		}, ErrNotLayer, []string{"expected 512 bytes, found 511"}},
		{"another file", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			test.Must(t, os.WriteFile(p.Map, []byte(strings.Repeat("QFI\xfb", 2000)), 0o600))
		}, ErrNotLayer, []string{"magic"}},
		{"header checksum", true, OpenParams{}, func(t *testing.T, p *Paths) {
			flip(t, p.Map, offSize+3)
		}, ErrDamaged, []string{"header checksum"}},
		{"newer version", true, OpenParams{}, func(t *testing.T, p *Paths) {
			rewriteHeader(t, p.Map, func(s *[SectorSize]byte) { s[offVersion] = 9 })
		}, ErrUnsupported, []string{"expected 1, found 9"}},
		{"must-refuse feature", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			rewriteHeader(t, p.Map, func(s *[SectorSize]byte) { s[offMustRefuse] = 4 })
		}, ErrUnsupported, []string{"found 0x4"}},
		{"truncated map of a head", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Map, 8191))
		}, ErrDamaged, []string{"at least 8192 bytes, found 8191"}},
		{"truncated map of a sealed layer", true, OpenParams{}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Map, 4096))
		}, ErrDamaged, []string{"at least 8192 bytes, found 4096"}},
		{"truncated data of a head", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Data, (owned+1)*4096-1))
		}, ErrDamaged, []string{"data", "at least 823296 bytes, found 823295"}},
		{"truncated data of a sealed layer", true, OpenParams{}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Data, 0))
		}, ErrDamaged, []string{"at least 823296 bytes, found 0"}},
		{"bit set in a sealed map", true, OpenParams{}, func(t *testing.T, p *Paths) {
			flip(t, p.Map, MapOffset+1)
		}, ErrDamaged, []string{"checksum of the sealed map"}},
		{"bits lost in a sealed map", true, OpenParams{}, func(t *testing.T, p *Paths) {
			test.Must(t, os.Truncate(p.Map, 4096))
			test.Must(t, os.Truncate(p.Map, 8192))
		}, ErrDamaged, []string{"checksum of the sealed map", "found 0x000000"}},
		{"bit set in a clean head", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			flip(t, p.Map, MapOffset+1)
		}, ErrDamaged, []string{"owned blocks: expected 1, found 2"}},
		{"bit beyond the last block of a head", false, OpenParams{Write: true},
			func(t *testing.T, p *Paths) { flip(t, p.Map, MapOffset+257/8+1) }, ErrDamaged,
			[]string{"beyond block 256", "block 268"}},
		{"bit beyond the last block of a sealed layer", true, OpenParams{},
			func(t *testing.T, p *Paths) { flip(t, p.Map, MapOffset+4095) }, ErrDamaged,
			[]string{"beyond block 256"}},
		{"size", false, OpenParams{Write: true, Expect: Expect{Size: size + 512}}, nil, ErrMismatch,
			[]string{"expected 1049600, found 1049088"}},
		{"size of a half sector", false, OpenParams{Write: true}, func(t *testing.T, p *Paths) {
			rewriteHeader(t, p.Map, func(s *[SectorSize]byte) { s[offSize]++ })
		}, ErrDamaged, []string{"multiple of 512", "1049089"}},
		{"block size", true, OpenParams{Expect: Expect{BlockSize: 512}}, nil, ErrMismatch,
			[]string{"expected 512, found 4096"}},
		{"UUID", true, OpenParams{Expect: Expect{UUID: anyOther}}, nil, ErrMismatch,
			[]string{anyOther.String(), id.String()}},
		{"parent", true, OpenParams{Expect: Expect{Parent: &anyOther}}, nil, ErrMismatch,
			[]string{"layer " + anyOther.String(), "layer " + parent.String()}},
		{"a parent where none belongs", true, OpenParams{Expect: Expect{Parent: &none}}, nil,
			ErrMismatch, []string{"none (the lowest layer)", parent.String()}},
		{"base", true, OpenParams{Expect: Expect{Base: &Fingerprint{2}}}, nil, ErrMismatch,
			[]string{"0200", "0100"}},
		{"no base", true, OpenParams{Expect: Expect{Base: new(Fingerprint)}}, nil, ErrMismatch,
			[]string{"expected none"}},
		{"data offset", true, OpenParams{}, func(t *testing.T, p *Paths) { p.DataOffset = 512 },
			ErrMismatch, []string{"expected 512, found 0"}},
		{"sealed opened for writing", true, OpenParams{Write: true}, nil, ErrSealed,
			[]string{"expected head, found sealed"}},
		{"sealed for a head", true, OpenParams{Expect: Expect{State: Head}}, nil, ErrSealed,
			[]string{"expected head, found sealed"}},
		{"head for sealed", false, OpenParams{Expect: Expect{State: Sealed}}, nil, ErrNotSealed,
			[]string{"expected sealed, found head"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := paths(t)
			l := newHead(t, p, CreateParams{UUID: id, Parent: parent, Size: size,
				Base: Fingerprint{1}})
			write(t, l, owned, 1)
			if c.sealed {
				test.Must(t, l.Seal(time.Now()))
			}
			test.Must(t, l.Close())
			files := []string{p.Map, p.Data}
			if c.change != nil {
				c.change(t, &p)
			}
			before := snap(t, files...)
			opened, err := Open(vfs.OS{}, p, c.open)
			if err == nil {
				opened.Abandon()
				t.Fatal("it was opened")
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			for _, text := range append(c.text, filepath.Dir(p.Map)) {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the error does not say %q: %v", text, err)
				}
			}
			after := snap(t, files...)
			if len(after) != len(before) {
				t.Error("a file was created or removed")
			}
			for name, b := range before {
				if after[name] != b {
					t.Errorf("%s was modified", name)
				}
			}
			// No lock is left either.
			for _, name := range []string{p.Map, p.Data} {
				if f, err := (vfs.OS{}).OpenFile(name, os.O_RDWR, 0); err == nil {
					test.Must(t, f.Lock(true))
					f.Close()
				}
			}
		})
	}
}

func TestOpenAcceptsWhatFits(t *testing.T) {
	p := paths(t)
	id, parent := uuid.New(), uuid.New()
	l := newHead(t, p, CreateParams{UUID: id, Parent: parent, Size: 1 << 20, Base: Fingerprint{1}})
	test.Must(t, l.Close())
	reopen(t, p, OpenParams{Write: true, Expect: Expect{State: Head, UUID: id, Parent: &parent,
		Size: 1 << 20, BlockSize: 4096, Base: &Fingerprint{1}}})
}

func TestInUse(t *testing.T) {
	p := paths(t)
	l := newHead(t, p, CreateParams{Size: 1 << 20})
	for _, write := range []bool{true, false} {
		_, err := Open(vfs.OS{}, p, OpenParams{Write: write})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), p.Map) {
			t.Errorf("open (write %v) of a head in use: got %v, want ErrInUse", write, err)
		}
	}
	if h, err := ReadHeader(vfs.OS{}, p.Map); err != nil || h.UUID != l.Header().UUID {
		t.Errorf("ReadHeader of a head in use: got %+v, %v", h, err)
	}
	test.Must(t, l.Close())
	test.Must(t, reopen(t, p, OpenParams{Write: true}).Close())
}

// The lock excludes other processes, not only other descriptors of this one.
func TestInUseByAnotherProcess(t *testing.T) {
	if name := os.Getenv("COWBLK_TEST_OPEN"); name != "" {
		_, err := Open(vfs.OS{}, Paths{Map: name, Data: filepath.Join(filepath.Dir(name), "data")},
			OpenParams{Write: true})
		if !errors.Is(err, ErrInUse) {
			t.Fatalf("got %v, want ErrInUse", err)
		}
		return
	}
	p := paths(t)
	l := newHead(t, p, CreateParams{Size: 1 << 20})
	defer l.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestInUseByAnotherProcess$")
	cmd.Env = append(os.Environ(), "COWBLK_TEST_OPEN="+p.Map)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the other process: %v\n%s", err, out)
	}
}

// A crash between two steps of a promotion leaves a head below a head.
func TestUnsealedLowerLayer(t *testing.T) {
	p := paths(t)
	l := newHead(t, p, CreateParams{Size: 1 << 30})
	write(t, l, 5, 3)
	flush(t, l)
	write(t, l, 4000, 1) // not flushed
	test.Must(t, l.Abandon())
	before := snap(t, p.Map)
	lower, err := Open(vfs.OS{}, p, OpenParams{})
	test.Must(t, err)
	if b := lower.Bitmap(); b == nil || b.Count() != 3 || !b.Test(7) || b.Test(4000) {
		t.Error("the bitmap is not the one that was flushed")
	}
	test.Must(t, lower.Close())
	if snap(t, p.Map)[p.Map] != before[p.Map] {
		t.Error("reading an unsealed layer modified it")
	}
	again := reopen(t, p, OpenParams{Write: true})
	test.Must(t, again.Seal(time.Now()))
	test.Must(t, again.Close())
	reopen(t, p, OpenParams{Expect: Expect{State: Sealed}})
}

func TestClearOnOpenAndMayIgnore(t *testing.T) {
	p := paths(t)
	test.Must(t, newHead(t, p, CreateParams{Size: 1 << 20}).Close())
	rewriteHeader(t, p.Map, func(s *[SectorSize]byte) {
		binary.LittleEndian.PutUint64(s[offMayIgnore:], 6)
		binary.LittleEndian.PutUint64(s[offClearOnOpen:], 12)
		s[offReserved] = 77
	})
	l, err := Open(vfs.OS{}, p, OpenParams{})
	test.Must(t, err)
	test.Must(t, l.Close())
	if h, _ := ReadHeader(vfs.OS{}, p.Map); h.Features.ClearOnOpen != 12 {
		t.Error("a reader cleared features")
	}
	l = reopen(t, p, OpenParams{Write: true})
	content := readFile(t, p.Map)
	h, err := ReadHeader(vfs.OS{}, p.Map)
	test.Must(t, err)
	if h.Features.ClearOnOpen != 0 || h.Features.MayIgnore != 6 || content[offReserved] != 77 ||
		h != l.Header() {
		t.Errorf("after opening for writing: %+v, reserved byte %d", h, content[offReserved])
	}
}

// A head whose data file is shorter than the disk, as another writer may leave it, has the full
// length once it is open for writing: a bit set over a hole beyond the end would make the layer
// damaged. Also with a data offset. A reader changes nothing.
func TestShortDataIsExtended(t *testing.T) {
	const size = 1 << 20
	for _, offset := range []int64{0, 64 << 10} {
		for _, length := range []int64{0, 4096, offset + size - 512} {
			dir := t.TempDir()
			p := Paths{Map: filepath.Join(dir, "map"), Data: filepath.Join(dir, "data"),
				DataOffset: offset}
			test.Must(t, newHead(t, p, CreateParams{Size: size}).Close())
			test.Must(t, os.Truncate(p.Data, length))
			for _, write := range []bool{false, true} {
				want := length
				if write {
					want = offset + size
				}
				l, err := Open(vfs.OS{}, p, OpenParams{Write: write})
				test.Must(t, err)
				st, err := os.Stat(p.Data)
				test.Must(t, err)
				if st.Size() != want {
					t.Errorf("offset %d, length %d, for writing %v: %d bytes, expected %d", offset,
						length, write, st.Size(), want)
				}
				test.Must(t, l.Close())
			}
		}
	}
}
