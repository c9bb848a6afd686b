package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// mixedLayer makes a sealed layer that owns blocks with content, written zeros, holes, and the last
// block, and has content that it does not own.
func mixedLayer(t testing.TB, blockSize uint32, size int64) (Paths, Known, *Layer) {
	t.Helper()
	p := paths(t)
	k := Known{UUID: uuid.New(), BlockSize: blockSize, Size: size, Created: time.Unix(1700000000,
		5).UTC()}
	l := newHead(t, p, CreateParams{UUID: k.UUID, Size: size, BlockSize: blockSize,
		Created: k.Created})
	rng := rand.New(rand.NewPCG(uint64(blockSize), uint64(size)))
	block := make([]byte, blockSize)
	blocks := l.Header().Blocks()
	for i := range blocks {
		kind := rng.IntN(6)
		if i == blocks-1 {
			kind = 0
		}
		if kind <= 1 { // the first half of a large block may be zeros
			for j := int(blockSize) / 2 * rng.IntN(2); j < len(block); j++ {
				block[j] = byte(rng.Uint32())
			}
		} else {
			clear(block)
		}
		off := int64(i) * int64(blockSize)
		if kind <= 2 {
			_, err := l.Data().WriteAt(block[:min(int64(blockSize), size-off)], off)
			test.Must(t, err)
		}
		if kind != 1 && kind != 4 {
			l.Bitmap().Set(i, 1)
		}
	}
	test.Must(t, l.Seal(time.Unix(1700000001, 0)))
	test.Must(t, l.Close())
	return p, k, reopen(t, p, OpenParams{})
}

// mixedLayerWithFile is mixedLayer with a path for a checksum file.
func mixedLayerWithFile(t testing.TB, blockSize uint32, size int64) (Paths, Known, *Layer) {
	t.Helper()
	p, k, l := mixedLayer(t, blockSize, size)
	test.Must(t, l.Close())
	p.Checksums = filepath.Join(filepath.Dir(p.Map), "apart", "sums")
	return p, k, reopen(t, p, OpenParams{})
}

// expectedTable computes the checksum table as FORMAT.md defines it.
func expectedTable(t testing.TB, p Paths, h Header) (table []byte, sum uint32) {
	t.Helper()
	bitmap := readFile(t, p.Map)
	data, err := os.ReadFile(p.Data)
	test.Must(t, err)
	crc := crc32.MakeTable(crc32.Castagnoli)
	unit := int(min(h.BlockSize, 4096))
	for i := 0; i*unit < len(data); i++ {
		block := i * unit / int(h.BlockSize)
		p := data[i*unit : min((i+1)*unit, len(data))]
		var v uint32
		if bitmap[4096+block/8]>>(block%8)&1 != 0 {
			v = crc32.Checksum(p, crc) ^ crc32.Checksum(make([]byte, len(p)), crc)
		}
		table = binary.LittleEndian.AppendUint32(table, v)
	}
	table = append(table, make([]byte, -len(table)&4095)...)
	for page := 0; page < len(table)/4096; page++ {
		raw := table[page*4096:][:4096]
		if !bytes.Equal(raw, make([]byte, 4096)) {
			sum = crc32.Update(sum, crc, binary.LittleEndian.AppendUint64(nil, uint64(page)))
			sum = crc32.Update(sum, crc, raw)
		}
	}
	return table, sum
}

var mixedSizes = []struct {
	blockSize uint32
	size      int64
}{{512, 512}, {512, 3<<20 + 512}, {4096, 9<<20 + 1536}, {4096, 1 << 20}, {65536, 20<<20 + 66048}}

func TestAddChecksums(t *testing.T) {
	for _, c := range mixedSizes {
		p, k, l := mixedLayer(t, c.blockSize, c.size)
		want, sum := expectedTable(t, p, l.Header())
		before := readFile(t, p.Map)
		addChecksums(t, l)
		after := readFile(t, p.Map)
		h := l.Header()
		if !bytes.Equal(after[512:len(before)], before[512:]) || !bytes.Equal(after[len(before):],
			want) || h.ChecksumsCRC != sum || !h.HasChecksums() {
			t.Fatalf("%+v: the map is not as expected (%d bytes, checksum %#x, want %#x)", c,
				len(after), h.ChecksumsCRC, sum)
		}
		if found, err := ReadHeader(vfs.OS{}, p.Map); err != nil || found != h {
			t.Errorf("%+v: the file's header is %+v, %v", c, found, err)
		}
		hasChecksums(t, p, k, l, want)
	}
}

// With a checksum file the map does not change.
func TestAddChecksumsToFile(t *testing.T) {
	for _, c := range mixedSizes {
		p, k, l := mixedLayerWithFile(t, c.blockSize, c.size)
		want, sum := expectedTable(t, p, l.Header())
		before := snap(t, p.Map, p.Data)
		addChecksums(t, l)
		if !maps.Equal(snap(t, p.Map, p.Data), before) {
			t.Errorf("%+v: map or data was modified", c)
		}
		got := readFile(t, p.Checksums)
		head := make([]byte, 4096)
		le := binary.LittleEndian
		copy(head, "COWBLK\x00S")
		le.PutUint32(head[8:], 1)
		le.PutUint32(head[12:], 4096)
		copy(head[24:], k.UUID[:])
		le.PutUint64(head[40:], uint64(c.size))
		le.PutUint32(head[48:], c.blockSize)
		le.PutUint32(head[52:], sum)
		le.PutUint32(head[508:], crc32.Checksum(head[:508], castagnoli()))
		if !bytes.Equal(got, append(head, want...)) {
			t.Errorf("%+v: the file is not as expected", c)
		}
		hasChecksums(t, p, k, l, want)
	}
}

// addChecksums adds the checksums and watches the progress.
func addChecksums(t testing.TB, l *Layer) {
	t.Helper()
	var behind int64
	test.Must(t, l.AddChecksums(func(off int64) error {
		if off <= behind || off > l.Header().Size {
			t.Errorf("%d bytes are behind after %d", off, behind)
		}
		behind = off
		return nil
	}))
}

// hasChecksums checks that the layer, and one that is opened now, has this table.
func hasChecksums(t *testing.T, p Paths, k Known, l *Layer, want []byte) {
	t.Helper()
	if found := inspectAll(t, p, k); len(found.Findings) != 0 || !found.HasChecksums {
		t.Errorf("%+v", found)
	}
	test.Must(t, l.AddChecksums(func(int64) error { return errInjected })) // nothing to do
	for _, l := range []*Layer{l, reopen(t, p, OpenParams{})} {
		if !l.HasChecksums() {
			t.Fatal("it has no data checksums")
		}
		expectTable(t, l, want)
	}
}

// One of several processes computes the checksums; the others get ErrInUse.
func TestAddChecksumsConcurrently(t *testing.T) {
	for _, make := range []func(testing.TB, uint32, int64) (Paths, Known, *Layer){
		mixedLayer, mixedLayerWithFile} {
		addChecksumsConcurrently(t, make)
	}
}

func addChecksumsConcurrently(t *testing.T, make func(testing.TB, uint32, int64) (Paths, Known,
	*Layer)) {
	p, k, first := make(t, 4096, 5<<20)
	layers := []*Layer{first, reopen(t, p, OpenParams{}), reopen(t, p, OpenParams{})}
	var wg sync.WaitGroup
	for _, l := range layers {
		wg.Go(func() {
			if err := l.AddChecksums(nil); err != nil && !errors.Is(err, ErrInUse) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, l := range layers {
		test.Must(t, l.AddChecksums(func(int64) error { return errInjected })) // done before
		if !l.HasChecksums() {
			t.Error("a layer does not know")
		}
	}
	if found := inspectAll(t, p, k); len(found.Findings) != 0 || !found.HasChecksums {
		t.Errorf("%+v", found)
	}
}

// One piece is read at a time: guests would wait for read-ahead of up to 8 MiB. (A file system in
// memory has none.)
func TestAddChecksumsReadsNothingAhead(t *testing.T) {
	const size = 4 << 20
	p := paths(t)
	l := newHead(t, p, CreateParams{UUID: uuid.New(), Size: size, BlockSize: 4096,
		Created: time.Unix(1, 0)})
	_, err := l.Data().WriteAt(bytes.Repeat([]byte{7}, size), 0)
	test.Must(t, err)
	l.Bitmap().Set(0, size/4096)
	test.Must(t, l.Seal(time.Unix(2, 0)))
	test.Must(t, l.Data().Datasync())
	test.Must(t, l.Close())
	l = reopen(t, p, OpenParams{})
	test.Must(t, l.Data().DropCache())
	enough := errors.New("enough")
	var read int64
	if err := l.AddChecksums(func(off int64) error { read = off; return enough }); !errors.Is(err,
		enough) {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for reads on their way
	var st unix.Statfs_t
	test.Must(t, unix.Statfs(filepath.Dir(p.Data), &st))
	buf := make([]byte, 4096)
	v := vfs.Iovec{Base: &buf[0]}
	v.SetLen(len(buf))
	if _, err := l.Data().PreadvNowait([]vfs.Iovec{v},
		read); (err == vfs.ErrWouldBlock) == (st.Type == unix.TMPFS_MAGIC) {
		t.Errorf("the page behind the first piece of %d bytes: %v", read, err)
	}
}

// The header is written last, and only when the table is durable.
func TestAddChecksumsOrder(t *testing.T) {
	p, _, _ := mixedLayer(t, 4096, 1<<20)
	r := recording("")
	l, err := Open(r, p, OpenParams{})
	test.Must(t, err)
	defer func() { test.Must(t, l.Close()) }()
	r.log = nil
	test.Must(t, l.AddChecksums(nil))
	r.expect(t, "sums", "truncate map, write map 8192, sync map, write map 0, sync map")
	test.Must(t, l.Close())

	p, _, _ = mixedLayerWithFile(t, 4096, 1<<20)
	l, err = Open(r, p, OpenParams{})
	test.Must(t, err)
	r.log = nil
	test.Must(t, l.AddChecksums(nil))
	r.expect(t, "sums", "sync directory, truncate sums, write sums 4096, sync sums, write sums 0, sync sums")
}

func TestAddChecksumsRefuses(t *testing.T) {
	p, _, l := mixedLayer(t, 4096, 1<<20)
	if err := l.AddChecksums(func(int64) error { return errInjected }); !errors.Is(err,
		errInjected) || l.Header().HasChecksums() {
		t.Errorf("stopped: %v", err)
	}
	if h, err := ReadHeader(vfs.OS{}, p.Map); err != nil || h.HasChecksums() {
		t.Errorf("stopped: %+v, %v", h, err)
	}
	test.Must(t, os.Truncate(p.Map, 8192+100))
	before := snap(t, p.Map)
	test.ErrorIs(t, l.AddChecksums(nil), ErrNoTableSpace, "with something behind the map")
	if snap(t, p.Map)[p.Map] != before[p.Map] {
		t.Error("it was modified")
	}
	// Files in the place of the open ones would get the checksums of the open ones.
	for _, replaced := range []func(Paths) string{
		func(p Paths) string { return p.Map }, func(p Paths) string { return p.Data }} {
		p, _, l = mixedLayer(t, 4096, 1<<20)
		name := replaced(p)
		content := readFile(t, name)
		test.Must(t, os.Rename(name, name+".old"))
		test.Must(t, os.WriteFile(name, content, 0o600))
		if err := l.AddChecksums(nil); !errors.Is(err, ErrMismatch) || l.Header().HasChecksums() {
			t.Errorf("with %s replaced: %v", name, err)
		}
	}
	p, _ = sample(t, false)
	test.ErrorIs(t, reopen(t, p, OpenParams{Write: true}).AddChecksums(nil), ErrNotSealed, "a head")
}

// Seal clears the feature bit of data checksums in a head.
func TestSealClearsChecksums(t *testing.T) {
	p, k := sample(t, false)
	rewriteHeader(t, p.Map, func(s *[SectorSize]byte) {
		s[offMayIgnore] = 3
		s[offChecksumsCRC] = 9
	})
	l := reopen(t, p, OpenParams{Write: true})
	test.Must(t, l.Seal(time.Now()))
	test.Must(t, l.Close())
	l = reopen(t, p, OpenParams{})
	if h := l.Header(); h.HasChecksums() || h.Features.MayIgnore != 2 {
		t.Errorf("%+v", h)
	}
	test.Must(t, l.AddChecksums(nil))
	if found := inspectAll(t, p, k); len(found.Findings) != 0 ||
		found.Header.Features.MayIgnore != 3 {
		t.Errorf("%+v", found)
	}
}

func expectTable(t *testing.T, l *Layer, want []byte) {
	t.Helper()
	sums, err := l.Checksums()
	test.Must(t, err)
	got := make([]byte, len(want))
	test.Must(t, sums.Load(got, nil, 0, true))
	if !bytes.Equal(got, want) {
		t.Fatal("the table is another one")
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	test.Must(t, err)
	return data
}
