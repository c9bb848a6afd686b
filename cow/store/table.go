package store

import (
	"math"
	"strconv"
	"strings"
)

// SectorSize is the unit of a device-mapper table, in bytes.
const SectorSize = 512

// MaxTableLayers limits the layers of one table line. Longer lines are refused early.
const MaxTableLayers = 1024

// Table is one line of dm-cow's device-mapper table:
//
//	START LENGTH cow BASE BASE_OFFSET [MAP DATA DATA_OFFSET]... MAP DATA DATA_OFFSET
//
// The last triple is the writable layer. Source: "dm-cow: copy-on-write stackable target for
// device-mapper", linux-kernel, 27 November 2006.
type Table struct {
	Start      int64 // sector of the mapped device at which this target begins; the disk's sector 0
	Length     int64 // size of the disk in sectors
	Base       string
	BaseOffset int64 // sector of Base that is the disk's sector 0
	Layers     []TableLayer
}

// TableLayer is one map and data pair of a Table.
type TableLayer struct {
	Map, Data  string
	DataOffset int64 // sector of Data that is the disk's sector 0
}

// ParseTable parses a table line. Every error is an ErrInvalid and names the field.
func ParseTable(line string) (*Table, error) {
	if strings.ContainsAny(strings.TrimRight(line, "\r\n"), "\r\n\x00") {
		return nil, invalidf("table: one line is expected, the text has several")
	}
	f := strings.Fields(line)
	if len(f) > 2 && f[2] != "cow" {
		return nil, invalidf("table: field 3 is %q, expected the target name \"cow\"", f[2])
	}
	if len(f) < 8 {
		return nil, invalidf("table: %d fields, at least 8 expected: START LENGTH cow BASE BASE_OFFSET MAP DATA DATA_OFFSET", len(f))
	}
	t := &Table{Base: f[3]}
	var err error
	if t.Start, err = sectors("START", f[0]); err != nil {
		return nil, err
	}
	if t.Length, err = sectors("LENGTH", f[1]); err != nil {
		return nil, err
	}
	if t.Length == 0 {
		return nil, invalidf("table: LENGTH is 0")
	}
	if t.BaseOffset, err = sectors("BASE_OFFSET", f[4]); err != nil {
		return nil, err
	}
	rest := f[5:]
	if len(rest)%3 != 0 {
		return nil, invalidf("table: %d fields after BASE_OFFSET, expected triples MAP DATA DATA_OFFSET", len(rest))
	}
	if len(rest)/3 > MaxTableLayers {
		return nil, invalidf("table: %d layers, at most %d", len(rest)/3, MaxTableLayers)
	}
	for i := 0; i < len(rest); i += 3 {
		l := TableLayer{Map: rest[i], Data: rest[i+1]}
		if l.DataOffset, err = sectors("DATA_OFFSET of "+l.Data, rest[i+2]); err != nil {
			return nil, err
		}
		t.Layers = append(t.Layers, l)
	}
	return t, t.check()
}

// check refuses sums beyond 63 bits and a map that is named twice: two layers in one map would
// overwrite each other.
func (t *Table) check() error {
	limit := int64(math.MaxInt64/SectorSize) - t.Length
	if t.Start > limit || t.BaseOffset > limit {
		return invalidf("table: START or BASE_OFFSET plus LENGTH is beyond the largest file offset")
	}
	seen := map[string]bool{}
	for _, l := range t.Layers {
		if l.DataOffset > limit {
			return invalidf("table: DATA_OFFSET of %s plus LENGTH is beyond the largest file offset", l.Data)
		}
		if seen[l.Map] {
			return invalidf("table: map %s is named twice", l.Map)
		}
		seen[l.Map] = true
		if l.Map == l.Data || l.Map == t.Base {
			return invalidf("table: %s is a map and also data", l.Map)
		}
	}
	for i, a := range t.Layers {
		if seen[a.Data] {
			return invalidf("table: %s is a map and also data", a.Data)
		}
		for _, b := range t.Layers[:i] {
			if a.Data == b.Data && overlap(a.DataOffset, b.DataOffset, t.Length) {
				return invalidf("table: two layers use the same sectors of %s", a.Data)
			}
		}
		if a.Data == t.Base && overlap(a.DataOffset, t.BaseOffset, t.Length) {
			return invalidf("table: the base and a layer use the same sectors of %s", a.Data)
		}
	}
	return nil
}

func overlap(a, b, n int64) bool { return a < b+n && b < a+n }

// sectors parses an unsigned decimal number of sectors whose byte offset fits in 63 bits.
func sectors(field, s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n > math.MaxInt64/SectorSize {
		return 0, invalidf("table: %s is %q, expected a number of 512-byte sectors", field, s)
	}
	return int64(n), nil
}

// String returns the line that ParseTable reads.
func (t *Table) String() string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(t.Start, 10) + " " + strconv.FormatInt(t.Length, 10) + " cow " +
		t.Base + " " + strconv.FormatInt(t.BaseOffset, 10))
	for _, l := range t.Layers {
		b.WriteString(" " + l.Map + " " + l.Data + " " + strconv.FormatInt(l.DataOffset, 10))
	}
	return b.String()
}
