package cowtest

import (
	"encoding/binary"
	"testing"
)

// A read during a write may find a sector torn, even within a word, but only between legal
// contents; an idle disk is never torn.
func TestTornSectors(t *testing.T) {
	const sector = 500
	for _, c := range []struct {
		name  string
		spoil func(p []byte, under Content)
		ended bool // the write ended before the read
		legal bool
	}{
		{"nothing of it", func([]byte, Content) {}, false, true},
		{"all of it", func(p []byte, c Content) { Stamp(p, sector, c) }, false, true},
		{"half of it", func(p []byte, c Content) { Stamp(p, sector, c); clear(p[:256]) }, false,
			true},
		{"half a word", func(p []byte, c Content) { Stamp(p, sector, c); clear(p[:260]) }, false,
			true},
		{"one byte", func(p []byte, c Content) {
			binary.LittleEndian.PutUint64(p[264:], stampOf(sector, c)&0xff0000)
		}, false, true},
		{"half a word of another sector", func(p []byte, c Content) {
			Stamp(p, sector+1, c)
			clear(p[:260])
		}, false, false},
		{"a write that never was", func(p []byte, c Content) { Stamp(p, sector, c+5) }, false,
			false},
		{"its end is past: all", func(p []byte, c Content) { Stamp(p, sector, c) }, true, true},
		{"its end is past: half of it", func(p []byte, c Content) {
			Stamp(p, sector, c)
			clear(p[:256])
		}, true, false},
		{"its end is past: half a word", func(p []byte, c Content) {
			Stamp(p, sector, c)
			clear(p[:260])
		}, true, false},
		{"its end is past: nothing of it", func([]byte, Content) {}, true, false},
	} {
		m := NewModel(1<<20, 0)
		under := m.NextContent()
		w := m.Begin(under, "write", [2]int64{sector * SectorSize, SectorSize})
		if c.ended {
			m.End(w)
		}
		p := make([]byte, SectorSize)
		c.spoil(p, under)
		if err := m.Check(p, sector*SectorSize, m.Now()); (err == nil) != c.legal {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
