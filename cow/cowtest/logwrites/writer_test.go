package logwrites

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
)

// logged is one entry as the reader below finds it. It is written from the kernel's
// description of the format alone and shares nothing with the writer.
type logged struct {
	sector, sectors, flags uint64
	data                   []byte // of a write; of a mark: its text
}

func readLog(p []byte) ([]logged, error) {
	word := func(off int) uint64 { return binary.LittleEndian.Uint64(p[off:]) }
	if word(0) != 0x6a736677736872 || word(8) != 1 || binary.LittleEndian.Uint32(p[24:]) != 512 {
		return nil, errors.New("bad super block")
	}
	var out []logged
	at := 512
	for range word(16) {
		if at+512 > len(p) {
			return nil, errors.New("the log ends within an entry")
		}
		e := logged{sector: word(at), sectors: word(at + 8), flags: word(at + 16)}
		private := int(word(at + 24))
		if private > 512-32 {
			return nil, errors.New("private data beyond its sector")
		}
		e.data = p[at+32 : at+32+private]
		at += 512
		if e.flags&(1<<2|1<<3) == 0 { // neither discard nor mark
			n := int(e.sectors) * 512
			if at+n > len(p) {
				return nil, errors.New("the log ends within data")
			}
			e.data = p[at : at+n]
			at += n
		}
		out = append(out, e)
	}
	return out, nil
}

// replay carries a log out on a device of n bytes, up to and including the given
// mark; all of it without one.
func replay(entries []logged, n int, mark string) []byte {
	dev := make([]byte, n)
	for _, e := range entries {
		switch {
		case e.flags&(1<<3) != 0:
			if mark != "" && string(e.data) == mark {
				return dev
			}
		case e.flags&(1<<2) != 0:
			clear(dev[e.sector*512 : (e.sector+e.sectors)*512])
		default:
			copy(dev[e.sector*512:], e.data)
		}
	}
	return dev
}

// What is exported replays, through a reader of its own, to the bytes that the file
// had at every mark.
func TestExportReplays(t *testing.T) {
	m := faultfs.New()
	tape := m.Record()
	f, err := m.Process(nil).OpenFile("/data", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 10
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.Truncate(size))
	want := map[string][]byte{}
	mark := func(name string) {
		m.Mark(name)
		p := make([]byte, size)
		_, err := f.ReadAt(p, 0)
		must(err)
		want[name] = p
	}
	put := func(b byte, off, n int64) {
		_, err := f.WriteAt(bytes.Repeat([]byte{b}, int(n)), off)
		must(err)
	}
	put('a', 0, 8192)
	mark("first")
	put('b', 512, 1024)
	must(f.Datasync())
	mark("second")
	must(f.PunchHole(4096, 2048))
	put('c', size-512, 512)
	mark("third")
	must(f.Datasync())
	mark("last")

	name := filepath.Join(t.TempDir(), "log")
	out, err := vfs.OS{}.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(err)
	l, err := NewWriter(out)
	must(err)
	must(Export(l, tape, "/data"))
	must(out.Close())
	log, err := os.ReadFile(name)
	must(err)
	entries, err := readLog(log)
	must(err)
	flushes := 0
	for _, e := range entries {
		if e.flags == 1 {
			flushes++
		}
	}
	if flushes != 2 {
		t.Errorf("expected 2 flushes, found %d", flushes)
	}
	for name, p := range want {
		if got := replay(entries, size, name); !bytes.Equal(got, p) {
			t.Errorf("replayed to mark %q: not what the file held", name)
		}
	}
	if got := replay(entries, size, ""); !bytes.Equal(got, want["last"]) {
		t.Error("replayed to the end: not what the file held")
	}
}

func TestWriterRefusesParts(t *testing.T) {
	l, err := NewWriter(discard{})
	if err != nil {
		t.Fatal(err)
	}
	if l.Write(1, make([]byte, 512)) == nil || l.Write(0, make([]byte, 100)) == nil || l.Discard(0, 1) == nil {
		t.Error("parts of sectors were taken")
	}
	if err := l.Mark(string(make([]byte, 4096))); err != nil {
		t.Error(err)
	}
	if l.off != 2*SectorSize {
		t.Errorf("a long mark took %d bytes", l.off-SectorSize)
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
