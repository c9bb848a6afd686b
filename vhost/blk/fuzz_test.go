package blk

import (
	"bytes"
	"testing"

	"cowblk/vhost/virtq"
)

// FuzzParse feeds arbitrary readable bytes and sizes of descriptors to the parser, and checks the
// result against the promised limits.
func FuzzParse(f *testing.F) {
	for _, typ := range []uint32{TypeIn, TypeOut, TypeFlush, TypeGetID, TypeDiscard,
		TypeWriteZeroes, 99} {
		f.Add(append(header(typ, 3), make([]byte, 512)...), uint16(513), uint8(200), uint8(40),
			false)
		f.Add(append(append(header(typ, 3), segment(10, 5, 0)...), segment(20, 1, 1)...),
			uint16(33), uint8(7), uint8(1), true)
	}
	f.Fuzz(func(t *testing.T, readable []byte, writable uint16, readCut, writeCut uint8, ro bool) {
		config := testConfig()
		config.ReadOnly = ro
		c := &virtq.Chain{
			Readable: split(readable, int(readCut)+1), ReadLen: uint64(len(readable)),
			Writable: split(make([]byte, writable), int(writeCut)+1), WriteLen: uint64(writable),
		}
		segs := append([][]byte(nil), c.Writable...)
		var r Request
		st, err := NewParser(config, 1<<64-1).Parse(c, &r)
		if err != nil {
			if len(readable) >= headerSize && writable > 0 {
				t.Fatalf("refused, but there is a header and a status: %v", err)
			}
			return
		}
		checkParsed(t, config, &r, st, readable)
		before := join(segs)
		if st == StatusPending {
			st = StatusIOErr
		}
		n := r.Finish(st)
		after := join(segs)
		if len(after) == 0 || after[len(after)-1] != byte(st) {
			t.Fatal("the last writable byte is not the status")
		}
		if !bytes.Equal(after[:len(after)-1], before[:len(before)-1]) {
			t.Fatal("Finish wrote more than the status")
		}
		if n > uint32(writable) {
			t.Fatalf("used length %d of %d", n, writable)
		}
	})
}

// checkParsed checks what Parse promises of r.
func checkParsed(t *testing.T, config *Config, r *Request, st Status, readable []byte) {
	if st != StatusPending {
		return
	}
	total := uint64(0)
	for _, s := range r.Data {
		if len(s) == 0 {
			t.Fatal("empty slice in Data")
		}
		total += uint64(len(s))
	}
	if total != r.DataLen || total%SectorSize != 0 {
		t.Fatalf("%d bytes of data, DataLen %d", total, r.DataLen)
	}
	switch r.Type {
	case TypeOut:
		if config.ReadOnly || !bytes.Equal(join(r.Data), readable[headerSize:]) {
			t.Fatal("a write that must not be, or of other data")
		}
		fallthrough
	case TypeIn:
		if n := r.DataLen / SectorSize; n == 0 || r.Sector >= config.Sectors ||
			n > config.Sectors-r.Sector {
			t.Fatalf("%d sectors from %d", n, r.Sector)
		}
	case TypeDiscard, TypeWriteZeroes:
		if config.ReadOnly || len(r.Ranges) == 0 || len(r.Ranges) > 3 {
			t.Fatalf("%d ranges", len(r.Ranges))
		}
		for _, g := range r.Ranges {
			if g.Sectors == 0 || g.Sectors > 100 || g.Sector >= config.Sectors ||
				g.Sectors > config.Sectors-g.Sector {
				t.Fatalf("range %v", g)
			}
		}
	case TypeFlush:
	default:
		t.Fatalf("type %d is pending", r.Type)
	}
}
