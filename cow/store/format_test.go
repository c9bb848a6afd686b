package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/internal/test"
)

// changeHeader changes the header of a map and corrects its checksum.
func changeHeader(t *testing.T, path string, change func(sector []byte)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	sector := make([]byte, layer.SectorSize)
	test.Must(t, test.Err(f.ReadAt(sector, 0)))
	change(sector)
	binary.LittleEndian.PutUint32(sector[508:], crc32.Checksum(sector[:508],
		crc32.MakeTable(crc32.Castagnoli)))
	test.Must(t, test.Err(f.WriteAt(sector, 0)))
}

// TestStackWithTwoBaseSizes: layers that disagree about the size of the base are refused and
// reported.
func TestStackWithTwoBaseSizes(t *testing.T) {
	for which := range 2 {
		s := newStore(t)
		importRaw(t, s, "golden", noise(3, 1<<20))
		create(t, s, "d", CreateOptions{From: "golden"})
		test.Must(t, test.Err(s.Promote(ctx, []string{"d"}, "t")))
		m, _ := s.Disk("d")
		changeHeader(t, s.paths(&m.Layers[which]).Map,
			func(sector []byte) { binary.LittleEndian.PutUint64(sector[128:], 512) })
		test.ErrorIs(t, tryOpen(s, "d"), ErrRefused,
			fmt.Sprintf("layer %d with another base_size: open", which))
		if r, err := s.Check(ctx, CheckOptions{Names: []string{"d"}}); err != nil || r.Left() == 0 {
			t.Errorf("layer %d with another base_size: check: expected a problem, found %+v, %v",
				which, r, err)
		}
	}
}

// TestOffsetOnImage: an image is a base as a whole.
func TestOffsetOnImage(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "golden", noise(3, 1<<20))
	create(t, s, "d", CreateOptions{From: "golden"})
	m, _ := s.Disk("d")
	m.Base.Offset = 512
	test.Must(t, s.writeDocument(s.path(disksDir, "d", diskFile), m))
	if _, err := s.OpenDisk(ctx, "d", OpenOptions{}); !errors.Is(err, ErrRefused) ||
		!strings.Contains(err.Error(), "base.offset") {
		t.Errorf("open: expected %v of base.offset, found %v", ErrRefused, err)
	}
	if r, err := s.Check(ctx, CheckOptions{}); err != nil || r.Left() == 0 {
		t.Errorf("check: expected a problem, found %+v, %v", r, err)
	}
}

// TestCheckCountsWhatIsDurable: check reports the minimum number of blocks of a disk that is being
// written.
func TestCheckCountsWhatIsDurable(t *testing.T) {
	s := newStore(t)
	create(t, s, "d", CreateOptions{Size: 1 << 20})
	o := openDisk(t, s, "d")
	defer o.Close()
	test.Must(t, test.Err(o.Disk.WriteAt(noise(1, 4096*5), 0)))
	test.Must(t, o.Disk.Flush())
	r, err := s.Check(ctx, CheckOptions{Names: []string{"d"}})
	test.Must(t, err)
	for _, k := range r.Reports {
		if k.Name == "d" && (k.Blocks != 5 || !k.AtLeast) {
			t.Errorf("expected at least 5 blocks, found %d, at least: %v", k.Blocks, k.AtLeast)
		}
	}
}

// TestTagOfSmallerLayer: a tag has the size of its layer. Beyond the end of a smaller layer, its
// last block reads as zeros in a larger disk, unless a layer above owns the block.
func TestTagOfSmallerLayer(t *testing.T) {
	s := newStore(t)
	const small, large = 4096*3 + 512, 4096 * 6
	create(t, s, "d", CreateOptions{Size: small})
	put(t, s, "d", noise(1, small), 0)
	test.Must(t, test.Err(s.Promote(ctx, []string{"d"}, "t")))
	create(t, s, "big", CreateOptions{From: "d@t", Size: large})
	want := append(noise(1, small), make([]byte, large-small)...)
	wantContent(t, s, "big", want, "a larger disk on a tag is not the tag with zeros behind it")
	test.Must(t, test.Err(s.Promote(ctx, []string{"big"}, "u")))
	for tag, size := range map[string]int64{"t": small, "u": large} {
		ref := Ref{Name: "big", Tag: tag}
		if tag == "t" {
			ref.Name = "d"
		}
		r, err := s.OpenTag(ctx, ref, cow.Options{})
		test.Must(t, err)
		if r.Size() != size {
			t.Errorf("%s: expected %d bytes, found %d", ref, size, r.Size())
		}
		r.Close()
	}
}

// TestSealedHead: every writer refuses a disk whose head is sealed, and says how to read it. That
// way works.
func TestSealedHead(t *testing.T) {
	s := newStore(t)
	create(t, s, "d", CreateOptions{Size: 1 << 20})
	put(t, s, "d", noise(1, 8192), 0)
	m := manifestOf(t, s, "d")
	l, err := layer.Open(s.fs, s.paths(m.Head()), layer.OpenParams{Write: true})
	test.Must(t, err)
	test.Must(t, errors.Join(l.Seal(s.now()), l.Close()))
	for what, do := range map[string]func() error{
		"open":    func() error { _, err := s.OpenDisk(ctx, "d", OpenOptions{}); return err },
		"promote": func() error { _, err := s.Promote(ctx, []string{"d"}, "t"); return err },
	} {
		err := do()
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "cowblk export") ||
			!strings.Contains(err.Error(), "--read-only") {
			t.Errorf("%s: expected %v, and how the disk can be read, found %v", what, ErrRefused,
				err)
		}
		if err != nil && strings.Contains(err.Error(), "put a new head on top") {
			t.Errorf("%s: the advice is what no command does: %v", what, err)
		}
	}
	o, err := s.OpenDisk(ctx, "d", OpenOptions{ReadOnly: true})
	test.Must(t, err)
	got := make([]byte, 8192)
	if _, err := o.Disk.ReadAt(got, 0); err != nil || string(got) != string(noise(1, 8192)) {
		t.Errorf("read-only: expected what was written, found something else, %v", err)
	}
	test.Must(t, o.Close())
}
