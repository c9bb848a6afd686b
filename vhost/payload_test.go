package vhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/guest"
)

// Every payload that can be decoded, as a value and as the bytes of the specification's tables,
// written by hand.
func TestPayloads(t *testing.T) {
	le := binary.LittleEndian
	u64s := func(vs ...uint64) (b []byte) {
		for _, v := range vs {
			b = le.AppendUint64(b, v)
		}
		return b
	}
	u32s := func(vs ...uint32) (b []byte) {
		for _, v := range vs {
			b = le.AppendUint32(b, v)
		}
		return b
	}
	region := guest.RegionDesc{GuestAddr: 1, Size: 2, UserAddr: 3, MmapOffset: 4}
	for _, c := range []struct {
		name   string
		bytes  []byte
		value  any
		decode func([]byte) (any, error)
		append func() []byte
		longer bool // bytes may follow
	}{
		{
			name: "u64", bytes: u64s(0x1122334455667788), value: uint64(0x1122334455667788),
			decode: func(b []byte) (any, error) { return DecodeU64(b) },
			append: func() []byte { return AppendU64(nil, 0x1122334455667788) },
		},
		{
			name: "ring state", bytes: u32s(7, 256), value: VringState{Index: 7, Num: 256},
			decode: func(b []byte) (any, error) { return DecodeVringState(b) },
			append: func() []byte { return VringState{Index: 7, Num: 256}.Append(nil) },
		},
		{
			name: "ring addresses", bytes: append(u32s(5, 1), u64s(10, 20, 30, 40)...),
			value:  VringAddr{Index: 5, Flags: 1, Desc: 10, Used: 20, Avail: 30, Log: 40},
			decode: func(b []byte) (any, error) { return DecodeVringAddr(b) },
			append: func() []byte {
				return VringAddr{Index: 5, Flags: 1, Desc: 10, Used: 20, Avail: 30, Log: 40}.Append(
					nil)
			},
		},
		{
			name: "memory table", bytes: append(u32s(2, 0), u64s(1, 2, 3, 4, 5, 6, 7, 8)...),
			value:  []guest.RegionDesc{region, {GuestAddr: 5, Size: 6, UserAddr: 7, MmapOffset: 8}},
			decode: func(b []byte) (any, error) { return DecodeMemTable(b) },
			append: func() []byte {
				return AppendMemTable(nil, []guest.RegionDesc{region, {GuestAddr: 5, Size: 6,
					UserAddr: 7, MmapOffset: 8}})
			},
			longer: true,
		},
		{
			name: "memory region", bytes: u64s(0, 1, 2, 3, 4), value: region,
			decode: func(b []byte) (any, error) { return DecodeMemReg(b) },
			append: func() []byte { return AppendMemReg(nil, region) },
		},
		{
			name: "config space", bytes: append(u32s(8, 3, 1), "abc"...),
			value:  ConfigSpace{Offset: 8, Size: 3, Flags: 1, Data: []byte("abc")},
			decode: func(b []byte) (any, error) { return DecodeConfigSpace(b) },
			append: func() []byte {
				return ConfigSpace{Offset: 8, Size: 3, Flags: 1, Data: []byte("abc")}.Append(nil)
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.decode(c.bytes)
			if err != nil || !reflect.DeepEqual(got, c.value) {
				t.Errorf("decode: %+v, %v; expected %+v", got, err, c.value)
			}
			if b := c.append(); !bytes.Equal(b, c.bytes) {
				t.Errorf("append: %x, expected %x", b, c.bytes)
			}
			for n := range c.bytes {
				if _, err := c.decode(c.bytes[:n]); !errors.Is(err, ErrProtocol) &&
					!(c.name == "config space" && n == 12) {
					t.Errorf("decode of %d bytes: %v, expected ErrProtocol", n, err)
				}
			}
			_, err = c.decode(append(bytes.Clone(c.bytes), 0))
			if (err == nil) != c.longer {
				t.Errorf("decode with a byte too many: %v", err)
			}
		})
	}
}

func TestPayloadLimits(t *testing.T) {
	text := test.Texts(t, "payload.texts")
	le := binary.LittleEndian
	config := func(off, size uint32, data int) []byte {
		b := le.AppendUint32(nil, off)
		b = le.AppendUint32(b, size)
		return append(b, make([]byte, 4+data)...)
	}
	table := func(n uint32, regions int) []byte {
		return append(le.AppendUint32(nil, n), make([]byte, 4+32*regions)...)
	}
	for _, c := range []struct {
		name   string
		bad    bool
		decode func() error
	}{
		{name: "whole window", decode: func() error {
			_, err := DecodeConfigSpace(config(0, 256, 256))
			return err
		}},
		{name: "empty at the end", decode: func() error {
			_, err := DecodeConfigSpace(config(256, 0, 0))
			return err
		}},
		{name: "without data", decode: func() error {
			_, err := DecodeConfigSpace(config(0, 60, 0))
			return err
		}},
		{name: "one beyond", bad: true, decode: func() error {
			_, err := DecodeConfigSpace(config(256, 1, 1))
			return err
		}},
		{name: "offset beyond", bad: true, decode: func() error {
			_, err := DecodeConfigSpace(config(257, 0, 0))
			return err
		}},
		{name: "sum overflows", bad: true, decode: func() error {
			_, err := DecodeConfigSpace(config(1<<32-1, 1<<32-1, 0))
			return err
		}},
		{name: "less data than size", bad: true, decode: func() error {
			_, err := DecodeConfigSpace(config(0, 60, 59))
			return err
		}},
		{name: "more data than size", bad: true, decode: func() error {
			_, err := DecodeConfigSpace(config(0, 60, 61))
			return err
		}},
		{name: "no regions", decode: func() error {
			_, err := DecodeMemTable(table(0, 0))
			return err
		}},
		{name: "eight regions", decode: func() error {
			_, err := DecodeMemTable(table(8, 8))
			return err
		}},
		{name: "padded table", decode: func() error {
			_, err := DecodeMemTable(table(1, 8))
			return err
		}},
		{name: "nine regions", bad: true, decode: func() error {
			_, err := DecodeMemTable(table(9, 9))
			return err
		}},
		{name: "2^32-1 regions", bad: true, decode: func() error {
			_, err := DecodeMemTable(table(1<<32-1, 8))
			return err
		}},
		{name: "fewer than announced", bad: true, decode: func() error {
			_, err := DecodeMemTable(table(3, 2))
			return err
		}},
		{name: "too long", bad: true, decode: func() error {
			_, err := DecodeMemTable(table(8, 9))
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.decode()
			if text(t, c.name, err); errors.Is(err, ErrProtocol) != c.bad {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestVringFD(t *testing.T) {
	for _, c := range []struct {
		v     uint64
		index int
		hasFD bool
	}{{0, 0, true}, {255, 255, true}, {0x100, 0, false}, {0x1ff, 255, false},
		{0xfffffffffffffe03, 3, true}} {
		i, has, err := DecodeVringFD(AppendU64(nil, c.v))
		if i != c.index || has != c.hasFD || err != nil {
			t.Errorf("%#x: ring %d, fd %t, %v; expected ring %d, fd %t", c.v, i, has, err, c.index,
				c.hasFD)
		}
	}
}

func TestRequestNames(t *testing.T) {
	for r, want := range map[Request]string{GetFeatures: "GET_FEATURES", GetStatus: "GET_STATUS",
		0: "message 0", 19: "message 19", 1 << 31: "message 2147483648"} {
		if got := r.String(); got != want {
			t.Errorf("%d: %q, expected %q", uint32(r), got, want)
		}
	}
	for r := range handlers {
		if lookup(Request(r)) != nil && strings.HasPrefix(Request(r).String(), "message") {
			t.Errorf("supported message %d has no name", r)
		}
	}
}

// The table in doc.go has the supported messages, with the numbers of their descriptors.
func TestMessagesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	test.Must(t, err)
	_, table, _ := strings.Cut(string(text), "// # Messages\n")
	table, _, _ = strings.Cut(table, "// # Protocol features\n")
	documented := map[string]string{}
	row := regexp.MustCompile(`(?m)^//\t *(\d+)  ([A-Z_]+) .* (-|\d|\d-\d)   `)
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		documented[m[1]+" "+m[2]] = m[3]
	}
	for _, r := range Supported() {
		h, fds := lookup(r), "-"
		switch {
		case h.minFDs < h.maxFDs:
			fds = fmt.Sprintf("%d-%d", h.minFDs, h.maxFDs)
		case h.maxFDs > 0:
			fds = fmt.Sprint(h.maxFDs)
		}
		key := fmt.Sprintf("%d %v", uint32(r), r)
		if documented[key] != fds {
			t.Errorf("doc.go: %s: descriptors %q, expected %q", key, documented[key], fds)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("doc.go has %s, which is not supported", key)
	}
}

// A decoder fails only with an error, and what it accepts encodes to the same bytes.
func FuzzPayload(f *testing.F) {
	f.Add(uint8(0), AppendU64(nil, 1))
	f.Add(uint8(1), VringState{Index: 1, Num: 2}.Append(nil))
	f.Add(uint8(2), VringAddr{Index: 1}.Append(nil))
	f.Add(uint8(3), AppendMemTable(nil, make([]guest.RegionDesc, 2)))
	f.Add(uint8(4), AppendMemReg(nil, guest.RegionDesc{Size: 1}))
	f.Add(uint8(5), ConfigSpace{Offset: 1, Size: 2, Data: []byte{1, 2}}.Append(nil))
	f.Add(uint8(6), Header{Request: SetOwner, Flags: 1}.Append(nil))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		var again []byte
		var err error
		skip := 0 // bytes that are padding
		switch kind % 7 {
		case 0:
			var v uint64
			v, err = DecodeU64(b)
			again = AppendU64(nil, v)
		case 1:
			var v VringState
			v, err = DecodeVringState(b)
			again = v.Append(nil)
		case 2:
			var v VringAddr
			v, err = DecodeVringAddr(b)
			again = v.Append(nil)
		case 3:
			var v []guest.RegionDesc
			v, err = DecodeMemTable(b)
			again, skip = AppendMemTable(nil, v), 8
		case 4:
			var v guest.RegionDesc
			v, err = DecodeMemReg(b)
			again, skip = AppendMemReg(nil, v), 8
		case 5:
			var v ConfigSpace
			v, err = DecodeConfigSpace(b)
			again = v.Append(nil)
		case 6:
			var v Header
			v, err = DecodeHeader(b)
			again = v.Append(nil)
		}
		if err != nil {
			test.ErrorIs(t, err, ErrProtocol)
			return
		}
		if len(again) > len(b) || !bytes.Equal(again[skip:], b[skip:len(again)]) {
			t.Errorf("%x became %x", b, again)
		}
	})
}
