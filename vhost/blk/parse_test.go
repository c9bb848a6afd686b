package blk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
)

// testConfig is a disk of 1,000 sectors.
func testConfig() *Config {
	return &Config{
		Sectors: 1000, ID: "disk-1",
		MaxDiscardSectors: 100, MaxDiscardSeg: 3,
		MaxWriteZeroesSectors: 50, MaxWriteZeroesSeg: 2,
	}
}

func header(typ uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, typ)
	b = binary.LittleEndian.AppendUint32(b, 0xdeadbeef) // reserved
	return binary.LittleEndian.AppendUint64(b, sector)
}

func segment(sector uint64, sectors, flags uint32) []byte {
	b := binary.LittleEndian.AppendUint64(nil, sector)
	b = binary.LittleEndian.AppendUint32(b, sectors)
	return binary.LittleEndian.AppendUint32(b, flags)
}

// split splits b into slices of at most n bytes, each with its own memory.
func split(b []byte, n int) (out [][]byte) {
	for len(b) > 0 {
		k := min(n, len(b))
		out = append(out, bytes.Clone(b[:k]))
		b = b[k:]
	}
	return out
}

// chain makes a chain of the readable bytes and of n writable ones, in descriptors of at most size
// bytes.
func chain(readable []byte, n, size int) *virtq.Chain {
	return &virtq.Chain{
		Readable: split(readable, size), ReadLen: uint64(len(readable)),
		Writable: split(bytes.Repeat([]byte{0xee}, n), size), WriteLen: uint64(n),
	}
}

func join(segs [][]byte) []byte { return bytes.Join(segs, nil) }

func TestParse(t *testing.T) {
	ro := testConfig()
	ro.ReadOnly = true
	sector := make([]byte, 512)
	for i := range sector {
		sector[i] = byte(i)
	}
	segs := func(typ uint32, ss ...[]byte) []byte {
		return append(header(typ, 77), bytes.Join(ss, nil)...)
	}
	disc, zero := uint32(TypeDiscard), uint32(TypeWriteZeroes)
	for _, tc := range []struct {
		name     string
		config   *Config // nil: testConfig
		features uint64  // 0: all
		readable []byte
		writable int // bytes
		want     Status
		data     int    // bytes of Data
		ranges   string // as fmt.Sprint shows Ranges
		written  uint32 // after Finish with StatusOK, or with want if it is not pending
	}{
		{name: "read", readable: header(TypeIn, 0), writable: 513, want: StatusPending, data: 512,
			written: 513},
		{name: "read the last sectors", readable: header(TypeIn, 996), writable: 2049,
			want: StatusPending, data: 2048, written: 2049},
		{name: "read nothing", readable: header(TypeIn, 1000), writable: 1, want: StatusOK,
			written: 1},
		{name: "read, not whole sectors", readable: header(TypeIn, 0), writable: 512,
			want: StatusIOErr},
		{name: "read beyond the end", readable: header(TypeIn, 999), writable: 1025,
			want: StatusIOErr},
		{name: "read behind the end", readable: header(TypeIn, 1001), writable: 1,
			want: StatusIOErr, written: 1},
		{name: "read, sector wraps", readable: header(TypeIn, 1<<64-1), writable: 1025,
			want: StatusIOErr},
		{name: "read, bytes wrap", readable: header(TypeIn, 1<<55), writable: 513,
			want: StatusIOErr},
		{name: "read, data on the wrong side", readable: append(header(TypeIn, 0), sector...),
			writable: 1, want: StatusOK, written: 1},
		{name: "read on a read-only disk", config: ro, readable: header(TypeIn, 0), writable: 513,
			want: StatusPending, data: 512, written: 513},

		{name: "write", readable: append(header(TypeOut, 999), sector...), writable: 1,
			want: StatusPending, data: 512, written: 1},
		{name: "write, room left", readable: append(header(TypeOut, 999), sector...), writable: 9,
			want: StatusPending, data: 512, written: 0},
		{name: "write nothing", readable: header(TypeOut, 1000), writable: 1, want: StatusOK,
			written: 1},
		{name: "write beyond the end", readable: append(header(TypeOut, 1000), sector...),
			writable: 1, want: StatusIOErr, written: 1},
		{name: "write, not whole sectors", readable: append(header(TypeOut, 0), sector[:511]...),
			writable: 1, want: StatusIOErr, written: 1},
		{name: "write on a read-only disk", config: ro, readable: append(header(TypeOut, 0),
			sector...), writable: 1, want: StatusIOErr, written: 1},

		{name: "flush", readable: header(TypeFlush, 0), writable: 1, want: StatusPending,
			written: 1},
		{name: "flush that was not negotiated", features: 1 << 32, readable: header(TypeFlush, 5),
			writable: 1, want: StatusPending, written: 1},
		{name: "ID", readable: header(TypeGetID, 0), writable: 21, want: StatusOK, written: 21},
		{name: "ID, room left", readable: header(TypeGetID, 0), writable: 33, want: StatusOK,
			written: 20},
		{name: "ID, no room", readable: header(TypeGetID, 0), writable: 20, want: StatusIOErr},

		{name: "discard", readable: segs(disc, segment(900, 100, 0)), writable: 1,
			want: StatusPending, ranges: "[{900 100 false}]", written: 1},
		{name: "discard three", readable: segs(disc, segment(0, 1, 0), segment(999, 1, 0),
			segment(5, 100, 0)), writable: 1, want: StatusPending,
			ranges: "[{0 1 false} {999 1 false} {5 100 false}]", written: 1},
		{name: "discard four", readable: segs(disc, segment(0, 1, 0), segment(1, 1, 0),
			segment(2, 1, 0), segment(3, 1, 0)), writable: 1, want: StatusIOErr, written: 1},
		{name: "discard nothing", readable: segs(disc, segment(1000, 0, 0)), writable: 1,
			want: StatusOK, written: 1},
		{name: "discard nothing and something", readable: segs(disc, segment(1, 0, 0),
			segment(2, 3, 0)), writable: 1, want: StatusPending, ranges: "[{2 3 false}]",
			written: 1},
		{name: "discard without a segment", readable: segs(disc), writable: 1, want: StatusIOErr,
			written: 1},
		{name: "discard, truncated segment", readable: segs(disc, segment(0, 1, 0)[:15]),
			writable: 1, want: StatusIOErr, written: 1},
		{name: "discard, a bit too much", readable: segs(disc, segment(0, 1, 0), []byte{0}),
			writable: 1, want: StatusIOErr, written: 1},
		{name: "discard too many sectors", readable: segs(disc, segment(0, 101, 0)), writable: 1,
			want: StatusIOErr, written: 1},
		{name: "discard beyond the end", readable: segs(disc, segment(999, 2, 0)), writable: 1,
			want: StatusIOErr, written: 1},
		{name: "discard, sector wraps", readable: segs(disc, segment(1<<64-1, 2, 0)), writable: 1,
			want: StatusIOErr, written: 1},
		{name: "discard with unmap", readable: segs(disc, segment(0, 1, 1)), writable: 1,
			want: StatusUnsupp, written: 1},
		{name: "discard with an unknown flag", readable: segs(disc, segment(0, 1, 1<<31)),
			writable: 1, want: StatusUnsupp, written: 1},
		{name: "discard, the flag after an error", readable: segs(disc, segment(2000, 1, 0),
			segment(0, 1, 2)), writable: 1, want: StatusUnsupp, written: 1},
		{name: "discard, an error after a good one", readable: segs(disc, segment(0, 1, 0),
			segment(2000, 1, 0)), writable: 1, want: StatusIOErr, written: 1},
		{name: "discard not negotiated", features: FeatureWriteZeroes,
			readable: segs(disc, segment(0, 1, 0)), writable: 1, want: StatusUnsupp, written: 1},
		{name: "discard on a read-only disk", config: ro, readable: segs(disc, segment(0, 1, 0)),
			writable: 1, want: StatusUnsupp, written: 1},
		{name: "discard not offered", config: &Config{Sectors: 9},
			readable: segs(disc, segment(0, 1, 0)), writable: 1, want: StatusUnsupp, written: 1},

		{name: "zeroes", readable: segs(zero, segment(1, 50, 0), segment(2, 3, 1)), writable: 1,
			want: StatusPending, ranges: "[{1 50 false} {2 3 true}]", written: 1},
		{name: "zeroes, three", readable: segs(zero, segment(1, 1, 0), segment(2, 3, 1),
			segment(1, 1, 0)), writable: 1, want: StatusIOErr, written: 1},
		{name: "zeroes, too many sectors", readable: segs(zero, segment(1, 51, 0)), writable: 1,
			want: StatusIOErr, written: 1},
		{name: "zeroes with an unknown flag", readable: segs(zero, segment(1, 1, 3)), writable: 1,
			want: StatusUnsupp, written: 1},
		{name: "zeroes not negotiated", features: FeatureDiscard,
			readable: segs(zero, segment(0, 1, 0)), writable: 1, want: StatusUnsupp, written: 1},

		{name: "SCSI command", readable: header(2, 0), writable: 1, want: StatusUnsupp, written: 1},
		{name: "lifetime", readable: header(10, 0), writable: 7, want: StatusUnsupp},
		{name: "secure erase", readable: segs(14, segment(0, 1, 0)), writable: 1,
			want: StatusUnsupp, written: 1},
		{name: "legacy barrier", readable: append(header(TypeOut|1<<31, 0), sector...), writable: 1,
			want: StatusUnsupp, written: 1},
		{name: "unknown type", readable: header(0xffffffff, 0), writable: 513, want: StatusUnsupp},
	} {
		// The same request in one descriptor and in ever smaller ones has the same result.
		for _, size := range []int{1 << 20, 512, 17, 16, 15, 5, 1} {
			t.Run(fmt.Sprintf("%s/%d", tc.name, size), func(t *testing.T) {
				config, features := tc.config, tc.features
				if config == nil {
					config = testConfig()
				}
				if features == 0 {
					features = 1<<64 - 1
				}
				c := chain(tc.readable, tc.writable, size)
				last := c.Writable[len(c.Writable)-1]
				r := Request{Ranges: []Range{{1, 2, true}}, Data: [][]byte{{1}}, answered: 9}
				got, err := NewParser(config, features).Parse(c, &r)
				if err != nil || got != tc.want {
					t.Fatalf("status %v, error %v, expected %v", got, err, tc.want)
				}
				if uint64(len(join(r.Data))) != r.DataLen || int(r.DataLen) != tc.data {
					t.Errorf("%d bytes of data, DataLen %d, expected %d", len(join(r.Data)),
						r.DataLen, tc.data)
				}
				if tc.want == StatusPending && r.Type == TypeOut && !bytes.Equal(join(r.Data),
					tc.readable[16:]) {
					t.Error("data is not what was to be written")
				}
				if tc.want == StatusPending && (tc.ranges != "" || len(r.Ranges) > 0) &&
					fmt.Sprint(r.Ranges) != tc.ranges {
					t.Errorf("ranges %v, expected %s", r.Ranges, tc.ranges)
				}
				for _, s := range r.Data {
					if len(s) == 0 {
						t.Error("empty slice in Data")
					}
				}
				end := got
				if end == StatusPending {
					end = StatusOK
				}
				test.Equal(t, r.Finish(end), tc.written, "used length")
				test.Equal(t, last[len(last)-1], byte(end), "status byte", end)
			})
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, tc := range []struct {
		name     string
		readable []byte
		writable int
	}{
		{"nothing", nil, 0},
		{"no header", nil, 513},
		{"short header", header(TypeIn, 0)[:15], 513},
		{"no status", header(TypeFlush, 0), 0},
		{"no status but data", append(header(TypeOut, 0), make([]byte, 512)...), 0},
	} {
		for _, size := range []int{1024, 3} {
			var r Request
			_, err := NewParser(testConfig(), 1<<64-1).Parse(chain(tc.readable, tc.writable, size),
				&r)
			test.ErrorIs(t, err, ErrMalformed, tc.name)
		}
	}
}

// A read's data is the writable part, in place; the answer to GET_ID is written at once.
func TestWhereDataGoes(t *testing.T) {
	for _, size := range []int{1024, 100, 7, 1} {
		p := NewParser(testConfig(), 0)
		var r Request
		c := chain(header(TypeIn, 1), 1025, size)
		segs := append([][]byte(nil), c.Writable...)
		if st, err := p.Parse(c, &r); st != StatusPending || err != nil {
			t.Fatal(st, err)
		}
		for _, s := range r.Data {
			for i := range s {
				s[i] = 0x11
			}
		}
		r.Finish(StatusOK)
		if want := append(bytes.Repeat([]byte{0x11}, 1024), 0); !bytes.Equal(join(segs), want) {
			t.Errorf("size %d: the driver's buffer does not hold the data and the status", size)
		}

		c = chain(header(TypeGetID, 0), 30, size)
		segs = append([][]byte(nil), c.Writable...)
		if st, err := p.Parse(c, &r); st != StatusOK || err != nil {
			t.Fatal(st, err)
		}
		r.Finish(StatusOK)
		want := append([]byte("disk-1"), make([]byte, 14)...)
		want = append(append(want, bytes.Repeat([]byte{0xee}, 9)...), 0)
		if !bytes.Equal(join(segs), want) {
			t.Errorf("size %d: % x, expected the ID and nothing behind it", size, join(segs))
		}
	}
}

func TestFinish(t *testing.T) {
	for _, tc := range []struct {
		typ     uint32
		end     Status
		written uint32
		status  byte
	}{
		{TypeIn, StatusOK, 513, 0},
		{TypeIn, StatusIOErr, 0, 1}, // a failed read claims no data
		{TypeIn, StatusUnsupp, 0, 2},
		{TypeIn, StatusPending, 0, 1}, // nobody may leave it open
		{TypeFlush, StatusIOErr, 0, 1},
	} {
		c := chain(header(tc.typ, 0), 513, 1024)
		buf := c.Writable[0]
		var r Request
		if st, err := NewParser(testConfig(), 0).Parse(c, &r); st != StatusPending || err != nil {
			t.Fatal(st, err)
		}
		if n := r.Finish(tc.end); n != tc.written || buf[512] != tc.status {
			t.Errorf("type %d, %v: used length %d, status %d, expected %d and %d", tc.typ, tc.end,
				n, buf[512], tc.written, tc.status)
		}
	}
	for s, want := range map[Status]string{StatusOK: "OK", StatusIOErr: "IOERR",
		StatusUnsupp: "UNSUPP", StatusPending: "pending", 9: "status 9"} {
		if s.String() != want {
			t.Errorf("%d is called %q", uint8(s), s)
		}
	}
}
