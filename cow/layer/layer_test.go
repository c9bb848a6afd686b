package layer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

func paths(t testing.TB) Paths {
	dir := t.TempDir()
	return Paths{Map: filepath.Join(dir, "map"), Data: filepath.Join(dir, "data")}
}

func newHead(t testing.TB, p Paths, c CreateParams) *Layer {
	t.Helper()
	l, err := CreateHead(vfs.OS{}, p, c)
	test.Must(t, err)
	return l
}

func reopen(t testing.TB, p Paths, o OpenParams) *Layer {
	t.Helper()
	l, err := Open(vfs.OS{}, p, o)
	test.Must(t, err)
	t.Cleanup(func() { _ = l.Abandon() })
	return l
}

// write does the same as a stack for a first write of whole blocks.
func write(t testing.TB, l *Layer, first, n uint64) {
	t.Helper()
	h := l.Header()
	p := bytes.Repeat([]byte{byte(first + 1)},
		int(min(int64(n)*int64(h.BlockSize), h.Size-int64(first)*int64(h.BlockSize))))
	_, err := l.Data().WriteAt(p, l.DataOffset()+int64(first)*int64(h.BlockSize))
	test.Must(t, err)
	for n > 0 {
		done, _ := l.Bitmap().Add(first, n)
		first, n = first+done, n-done
	}
}

// sourceBits reads a layer's bitmap through its Source.
func sourceBits(t testing.TB, l *Layer) map[uint64]bool {
	t.Helper()
	s, bits := l.Source(), map[uint64]bool{}
	for word := uint64(0); ; {
		start, end, err := s.Next(word)
		if err == io.EOF {
			return bits
		}
		test.Must(t, err)
		if start < word || end <= start {
			t.Fatalf("Next(%d): got %d to %d", word, start, end)
		}
		words := make([]uint64, end-start)
		test.Must(t, s.Words(words, start))
		for i, w := range words {
			for k := range uint64(64) {
				if w>>k&1 != 0 {
					bits[(start+uint64(i))*64+k] = true
				}
			}
		}
		word = end
	}
}

func TestLayerFromCreateToSeal(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096, 65536} {
		p := paths(t)
		p.DataOffset = 3 * 512
		parent := uuid.New()
		now := time.Unix(1700000000, 5).UTC()
		l := newHead(t, p, CreateParams{Parent: parent, Size: 300<<20 + 512, BlockSize: blockSize,
			Created: now, Base: Fingerprint{1}, BaseSize: 99})
		blocks := l.Header().Blocks()
		owned := []uint64{0, 1, 63, 64, 777, blocks - 2, blocks - 1} // the last is partial
		for _, b := range owned {
			write(t, l, b, 1)
		}
		test.Must(t, l.Close())

		check := func(l *Layer, state State) {
			t.Helper()
			h := l.Header()
			if h.State != state || !h.Clean && !l.Writable() || h.Parent != parent ||
				h.Size != 300<<20+512 || h.BlockSize != blockSize || h.Created != now ||
				h.Base != (Fingerprint{1}) || h.BaseSize != 99 {
				t.Errorf("block size %d: header: got %+v", blockSize, h)
			}
			bits := sourceBits(t, l)
			for _, b := range owned {
				if !bits[b] {
					t.Errorf("block size %d: %v: block %d is not owned", blockSize, state, b)
				}
			}
			if len(bits) != len(owned) {
				t.Errorf("block size %d: %v: got %d owned blocks, want %d", blockSize, state,
					len(bits), len(owned))
			}
		}
		readOnly, err := Open(vfs.OS{}, p, OpenParams{})
		test.Must(t, err)
		check(readOnly, Head)
		test.Must(t, readOnly.Close())

		l, err = Open(vfs.OS{}, p, OpenParams{Write: true, Expect: Expect{State: Head}})
		test.Must(t, err)
		check(l, Head)
		if l.Header().Clean {
			t.Error("a head that is open for writing is marked clean")
		}
		old := l.Data()
		write(t, l, 100, 2)
		owned = append(owned, 100, 101)
		test.Must(t, l.Seal(now.Add(time.Hour)))
		check(l, Sealed)
		if l.Bitmap() != nil || l.Writable() || l.Header().SealedAt != now.Add(time.Hour) ||
			l.Header().Owned != uint64(len(owned)) {
			t.Errorf("after Seal: header %+v", l.Header())
		}
		if _, err := l.Data().WriteAt([]byte{1}, 0); err == nil {
			t.Error("the data of a sealed layer can be written")
		}
		if _, err := old.ReadAt(make([]byte, 1), 0); err != nil {
			t.Errorf("the data file from before Seal: %v", err)
		}
		for name, err := range map[string]error{"SyncData": l.SyncData(), "SyncMap": l.SyncMap(),
			"WriteMap": l.WriteMap(nil), "Seal": l.Seal(now)} {
			if !errors.Is(err, ErrSealed) {
				t.Errorf("%s of a sealed layer: got %v, want ErrSealed", name, err)
			}
		}
		second := reopen(t, p, OpenParams{Expect: Expect{State: Sealed}}) // the lock is shared now
		check(second, Sealed)
		test.Must(t, l.Close())
	}
}

func TestCreateRefuses(t *testing.T) {
	p := paths(t)
	for name, c := range map[string]CreateParams{
		"no size":                {},
		"size not of sectors":    {Size: 1000},
		"size too large":         {Size: MaxSize + 512},
		"block size too small":   {Size: 512, BlockSize: 256},
		"block size too large":   {Size: 512, BlockSize: 128 << 10},
		"block size not a power": {Size: 512, BlockSize: 3072},
		"own parent": {Size: 512,
			UUID:   uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"),
			Parent: uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")},
	} {
		test.ErrorIs(t, test.Err(CreateHead(vfs.OS{}, p, c)), ErrInvalid, name)
	}
	test.ErrorIs(t, test.Err(CreateHead(vfs.OS{}, Paths{Map: p.Map, Data: p.Map},
		CreateParams{Size: 512})), ErrInvalid, "one file for both")
	if _, err := CreateHead(vfs.OS{}, Paths{Map: p.Map, Data: p.Data, DataOffset: 100},
		CreateParams{Size: 512}); !errors.Is(err, ErrInvalid) {
		t.Errorf("data offset 100: got %v, want ErrInvalid", err)
	}
	// Existing files are neither overwritten nor removed.
	test.Must(t, os.WriteFile(p.Data, []byte("mine"), 0o600))
	test.ErrorIs(t, test.Err(CreateHead(vfs.OS{}, p, CreateParams{Size: 512})), fs.ErrExist,
		"data exists")
	if _, err := os.Stat(p.Map); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a map was left behind")
	}
	if content, _ := os.ReadFile(p.Data); string(content) != "mine" {
		t.Errorf("the file that was there: got %q", content)
	}
}

func TestFormatIfZero(t *testing.T) {
	c := CreateParams{Size: 1 << 20}
	mapSize := (&Header{Size: c.Size, BlockSize: DefaultBlockSize}).MapSize()
	for _, tc := range []struct {
		name  string
		dirty int64 // offset of a byte that is not zero; -1: none
		force bool
		want  error
	}{
		{"zeroed", -1, false, nil},
		{"something in the header", 5, false, ErrNotZero},
		{"something between", 1000, false, ErrNotZero},
		{"something in the bitmap", MapOffset + 3, false, ErrNotZero},
		{"something behind the map", mapSize, false, nil},
		{"forced", MapOffset + 3, true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := paths(t)
			content := make([]byte, mapSize+10)
			if tc.dirty >= 0 {
				content[tc.dirty] = 1
			}
			test.Must(t, os.WriteFile(p.Map, content, 0o600))
			test.Must(t, os.WriteFile(p.Data, []byte("old"), 0o600))
			l, err := FormatIfZero(vfs.OS{}, p, c, tc.force)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), p.Map) {
					t.Errorf("the error does not name the map: %v", err)
				}
				if now, _ := os.ReadFile(p.Map); !bytes.Equal(now, content) {
					t.Error("a refused format changed the map")
				}
				return
			}
			test.Must(t, l.Close())
			l = reopen(t, p, OpenParams{Write: true})
			if l.Bitmap().Count() != 0 {
				t.Errorf("%d blocks are owned after formatting", l.Bitmap().Count())
			}
			if size, _ := l.Data().Size(); size != c.Size {
				t.Errorf("length of the data: got %d, want %d", size, c.Size)
			}
			test.ErrorIs(t, test.Err(FormatIfZero(vfs.OS{}, p, c, true)), ErrInUse,
				"format of an open layer")
		})
	}
}

func TestWriteMapInAnyOrderAndNumber(t *testing.T) {
	p := paths(t)
	l := newHead(t, p, CreateParams{Size: 600 * blocksPerPage * 512, BlockSize: 512})
	b := l.Bitmap()
	for page := uint64(0); page < 600; page++ {
		if page%100 != 50 {
			b.Set(page*blocksPerPage+page, 1)
		}
	}
	pages := b.TakeDirty(nil)
	if len(pages) != 594 {
		t.Fatalf("got %d dirty pages, want 594", len(pages))
	}
	test.Must(t, l.SyncData())
	test.Must(t, l.WriteMap(pages))
	test.Must(t, l.SyncMap())
	test.Must(t, l.Abandon())
	l = reopen(t, p, OpenParams{})
	if l.Header().Clean {
		t.Error("a head that was not closed is marked clean")
	}
	bits := sourceBits(t, l)
	if len(bits) != 594 || !bits[599*blocksPerPage+599] || bits[50*blocksPerPage+50] {
		t.Errorf("got %d bits, want 594", len(bits))
	}
}

func TestFingerprint(t *testing.T) {
	name := filepath.Join(t.TempDir(), "base")
	content := make([]byte, 3<<20+777)
	for i := range content {
		content[i] = byte(i * i >> 5)
	}
	test.Must(t, os.WriteFile(name, content, 0o600))
	f, err := vfs.OS{}.OpenFile(name, os.O_RDONLY, 0)
	test.Must(t, err)
	defer f.Close()

	// FORMAT.md, word for word.
	document := func(p []byte) Fingerprint {
		n := len(p)
		h := sha256.New()
		h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 0, 0, 0, 0})
		h.Write(p[:min(n, 65536)])
		h.Write(p[max(0, n-65536):])
		for k := range 256 {
			at := 4096 * (n / 4096 * k / 256)
			h.Write(p[at:min(n, at+4096)])
		}
		return Fingerprint(h.Sum(nil))
	}
	for _, window := range [][2]int{{0, len(content)}, {512, 1 << 20}, {0, 0}, {0, 100},
		{1024, 65536}, {7, 70000}} {
		got, err := ComputeFingerprint(f, int64(window[0]), int64(window[1]))
		if want := document(content[window[0] : window[0]+window[1]]); err != nil || got != want {
			t.Errorf("%d bytes at %d: got %v, %v, want %v", window[1], window[0], got, err, want)
		}
	}
	if _, err := ComputeFingerprint(f, 512, int64(len(content))); !errors.Is(err, ErrMismatch) ||
		!strings.Contains(err.Error(), name) {
		t.Errorf("base too short: got %v, want ErrMismatch", err)
	}
	test.ErrorIs(t, test.Err(ComputeFingerprint(f, -1, 1)), ErrInvalid, "negative offset")

	text, err := document(content).MarshalText()
	test.Must(t, err)
	var back Fingerprint
	if err := back.UnmarshalText(text); err != nil || back != document(content) {
		t.Errorf("text form %q: got %v, %v", text, back, err)
	}
	for _, bad := range []string{"12", strings.Repeat("g", 64), strings.Repeat("0", 66)} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if err := back.UnmarshalText(nil); err != nil || !back.IsZero() {
		t.Errorf("no text: got %v, %v, want the zero fingerprint", back, err)
	}
}
