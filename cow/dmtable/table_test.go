package dmtable

import (
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"cowblk/cow/finding"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, line string
		want       *Table
		err        string // substring; empty: parses
	}{
		{"the issue's example", "0 8385866 cow /dev/sdb1 0 /dev/sdb2 /dev/sdb3 0",
			&Table{Length: 8385866, Base: "/dev/sdb1",
				Layers: []Layer{{"/dev/sdb2", "/dev/sdb3", 0}}}, ""},
		{"start and offsets", "63 100 cow b 7 rm rd 8 wm wd 9\n", &Table{Start: 63, Length: 100,
			Base: "b", BaseOffset: 7,
			Layers: []Layer{{"rm", "rd", 8}, {"wm", "wd", 9}}}, ""},
		{"tabs and several blanks", "0\t1  cow b 0 m d 0", &Table{Length: 1, Base: "b",
			Layers: []Layer{{"m", "d", 0}}}, ""},
		{"layers in one data device", "0 10 cow b 0 m1 d 0 m2 d 10", &Table{Length: 10, Base: "b",
			Layers: []Layer{{"m1", "d", 0}, {"m2", "d", 10}}}, ""},
		{"layer behind the base", "0 10 cow d 0 m1 d 10", &Table{Length: 10, Base: "d",
			Layers: []Layer{{"m1", "d", 10}}}, ""},
		{"empty", "", nil, "0 fields"},
		{"no writable layer", "0 1 cow b 0", nil, "at least 8"},
		{"other target", "0 1 linear b 0 m d 0", nil, `expected the target name "cow"`},
		{"half a triple", "0 1 cow b 0 m d 0 m2", nil, "triples"},
		{"length 0", "0 0 cow b 0 m d 0", nil, "LENGTH is 0"},
		{"negative start", "-1 1 cow b 0 m d 0", nil, "START"},
		{"length not a number", "0 1G cow b 0 m d 0", nil, "LENGTH"},
		{"offset not a number", "0 1 cow b x m d 0", nil, "BASE_OFFSET"},
		{"data offset not a number", "0 1 cow b 0 m d 0x10", nil, "DATA_OFFSET of d"},
		{"byte offset beyond 63 bits", "0 36028797018963968 cow b 0 m d 0", nil, "LENGTH"},
		{"sum beyond 63 bits", "0 18014398509481983 cow b 18014398509481983 m d 0", nil, "beyond"},
		{"map twice", "0 1 cow b 0 m d 0 m e 0", nil, "named twice"},
		{"map is data", "0 1 cow b 0 m m 0", nil, "map and also data"},
		{"map is another's data", "0 1 cow b 0 m d 0 d e 0", nil, "map and also data"},
		{"map is the base", "0 1 cow b 0 b d 0", nil, "map and also data"},
		{"data overlaps", "0 10 cow b 0 m1 d 0 m2 d 9", nil, "same sectors of d"},
		{"data overlaps the base", "0 10 cow d 0 m1 d 9", nil, "same sectors of d"},
		{"two lines", "0 1 cow b 0 m d 0\n1 1 cow b 0 m2 d 0", nil, "one line"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.line)
			if tt.err != "" {
				if !errors.Is(err, finding.ErrInvalid) || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want finding.ErrInvalid with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0 8385866 cow /dev/sdb1 0 /dev/sdb2 /dev/sdb3 0")
	f.Add("63 100 cow b 7 rm rd 8 wm wd 9")
	f.Fuzz(func(t *testing.T, line string) {
		tab, err := Parse(line)
		if err != nil {
			if !errors.Is(err, finding.ErrInvalid) {
				t.Fatalf("%q: %v is not finding.ErrInvalid", line, err)
			}
			return
		}
		again, err := Parse(tab.line())
		if err != nil || !reflect.DeepEqual(tab, again) {
			t.Fatalf("%q: printed %q reads back as %+v, %v", line, tab.line(), again, err)
		}
		for _, l := range tab.Layers {
			if l.DataOffset < 0 || (l.DataOffset+tab.Length)*SectorSize < 0 {
				t.Fatalf("%q: offset overflows", line)
			}
		}
	})
}

// line returns the line that Parse reads.
func (t *Table) line() string {
	var b strings.Builder
	b.WriteString(strconv.FormatInt(t.Start, 10) + " " + strconv.FormatInt(t.Length, 10) + " cow " +
		t.Base + " " + strconv.FormatInt(t.BaseOffset, 10))
	for _, l := range t.Layers {
		b.WriteString(" " + l.Map + " " + l.Data + " " + strconv.FormatInt(l.DataOffset, 10))
	}
	return b.String()
}
