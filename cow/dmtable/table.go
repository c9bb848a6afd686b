package dmtable

import (
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"cowblk/cow/finding"
)

// SectorSize is the unit of a device-mapper table, in bytes.
const SectorSize = 512

// MaxLayers limits the layers of one table line. Longer lines are refused early.
const MaxLayers = 1024

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
	Layers     []Layer
}

// Layer is one map and data pair of a Table.
type Layer struct {
	Map, Data  string
	DataOffset int64 // sector of Data that is the disk's sector 0
}

// Parse parses a table line. Every error is a finding.ErrInvalid and names the field.
func Parse(line string) (*Table, error) {
	if strings.ContainsAny(strings.TrimRight(line, "\r\n"), "\r\n\x00") {
		return nil, finding.Invalidf("table: one line is expected, the text has several")
	}
	f := strings.Fields(line)
	if len(f) > 2 && f[2] != "cow" {
		return nil, finding.Invalidf("table: field 3 is %q, expected the target name \"cow\"", f[2])
	}
	if len(f) < 8 {
		return nil, finding.Invalidf(
			"table: %d fields, at least 8 expected: START LENGTH cow BASE BASE_OFFSET MAP DATA DATA_OFFSET", len(f))
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
		return nil, finding.Invalidf("table: LENGTH is 0")
	}
	if t.BaseOffset, err = sectors("BASE_OFFSET", f[4]); err != nil {
		return nil, err
	}
	rest := f[5:]
	if len(rest)%3 != 0 {
		return nil, finding.Invalidf(
			"table: %d fields after BASE_OFFSET, expected triples MAP DATA DATA_OFFSET", len(rest))
	}
	if len(rest)/3 > MaxLayers {
		return nil, finding.Invalidf("table: %d layers, at most %d", len(rest)/3, MaxLayers)
	}
	for i := 0; i < len(rest); i += 3 {
		l := Layer{Map: rest[i], Data: rest[i+1]}
		if l.DataOffset, err = sectors("DATA_OFFSET of "+l.Data, rest[i+2]); err != nil {
			return nil, err
		}
		t.Layers = append(t.Layers, l)
	}
	return t, t.check()
}

// Absolute makes the paths absolute.
func (t *Table) Absolute() error {
	paths := []*string{&t.Base}
	for i := range t.Layers {
		paths = append(paths, &t.Layers[i].Map, &t.Layers[i].Data)
	}
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		if err := finding.CheckPath("path of the table", abs); err != nil {
			return err
		}
		*p = abs
	}
	return t.check() // two spellings of one path are equal now
}

// check refuses sums beyond 63 bits and a map that is named twice: two layers in one map would
// overwrite each other.
func (t *Table) check() error {
	limit := int64(math.MaxInt64/SectorSize) - t.Length
	if t.Start > limit || t.BaseOffset > limit {
		return finding.Invalidf(
			"table: START or BASE_OFFSET plus LENGTH is beyond the largest file offset")
	}
	seen := map[string]bool{}
	for _, l := range t.Layers {
		if l.DataOffset > limit {
			return finding.Invalidf(
				"table: DATA_OFFSET of %s plus LENGTH is beyond the largest file offset", l.Data)
		}
		if seen[l.Map] {
			return finding.Invalidf("table: map %s is named twice", l.Map)
		}
		seen[l.Map] = true
		if l.Map == l.Data || l.Map == t.Base {
			return finding.Invalidf("table: %s is a map and also data", l.Map)
		}
	}
	for i, a := range t.Layers {
		if seen[a.Data] {
			return finding.Invalidf("table: %s is a map and also data", a.Data)
		}
		for _, b := range t.Layers[:i] {
			if a.Data == b.Data && overlap(a.DataOffset, b.DataOffset, t.Length) {
				return finding.Invalidf("table: two layers use the same sectors of %s", a.Data)
			}
		}
		if a.Data == t.Base && overlap(a.DataOffset, t.BaseOffset, t.Length) {
			return finding.Invalidf("table: the base and a layer use the same sectors of %s",
				a.Data)
		}
	}
	return nil
}

func overlap(a, b, n int64) bool { return a < b+n && b < a+n }

// sectors parses an unsigned decimal number of sectors whose byte offset fits in 63 bits.
func sectors(field, s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n > math.MaxInt64/SectorSize {
		return 0, finding.Invalidf("table: %s is %q, expected a number of 512-byte sectors", field,
			s)
	}
	return int64(n), nil
}
