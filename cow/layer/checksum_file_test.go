package layer

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// Table and data prove the header of a checksum file; header and data prove the table.
func TestRestoreChecksumFile(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(p Paths)
		mend   bool
		opens  error // result of Open before
	}{
		{"bit of an entry", func(p Paths) { flip(t, p.Checksums, 4096+9) }, true, nil},
		{"bit where it is zero", func(p Paths) { flip(t, p.Checksums, 8191) }, true, nil},
		{"cut", func(p Paths) { test.Must(t, os.Truncate(p.Checksums, 4096+3)) }, true, ErrDamaged},
		{"cut within the header", func(p Paths) { test.Must(t, os.Truncate(p.Checksums, 520)) },
			true, ErrDamaged},
		{"magic", func(p Paths) { flip(t, p.Checksums, 0) }, true, ErrDamaged},
		{"UUID", func(p Paths) { flip(t, p.Checksums, 30) }, true, ErrDamaged},
		{"checksum of the table", func(p Paths) { flip(t, p.Checksums, 53) }, true, ErrDamaged},
		{"table and data", func(p Paths) { flip(t, p.Checksums, 4096+9); flip(t, p.Data, 1<<20-1) },
			false, nil},
		{"header and data", func(p Paths) { flip(t, p.Checksums, 30); flip(t, p.Data, 1<<20-1) },
			false, ErrDamaged},
		{"header and table", func(p Paths) {
			flip(t, p.Checksums, 30)
			flip(t, p.Checksums, 4096+9)
		}, false, ErrDamaged},
		{"another layer's", func(p Paths) {
			rewriteHeader(t, p.Checksums, func(s *[SectorSize]byte) { s[offChecksumUUID]++ })
		}, true, ErrMismatch},
		{"a newer version", func(p Paths) {
			rewriteHeader(t, p.Checksums, func(s *[SectorSize]byte) {
				s[offChecksumMustRefuse+7] = 1
			})
		}, false, ErrUnsupported},
	} {
		p, k, l := mixedLayerWithFile(t, 4096, 1<<20)
		test.Must(t, l.AddChecksums(nil))
		test.Must(t, l.Close())
		want := readFile(t, p.Checksums)
		c.damage(p)
		if l, err := Open(vfs.OS{}, p, OpenParams{}); !errors.Is(err, c.opens) {
			t.Errorf("%s: Open: %v, want %v", c.name, err, c.opens)
		} else if err == nil {
			test.Must(t, l.Close())
		} else if !strings.Contains(err.Error(), p.Checksums) {
			t.Errorf("%s: the file is not named: %v", c.name, err)
		}
		for _, o := range []InspectParams{{Known: k, Map: true},
			{Known: k, Map: true, Data: func(int64, int64) error { return nil }}} {
			if found, err := Inspect(vfs.OS{}, p, o); err != nil || len(found.Findings) == 0 ||
				!found.HasChecksums {
				t.Errorf("%s: %+v, %v", c.name, found, err)
			}
		}
		done, err := Repair(vfs.OS{}, p, k)
		test.Must(t, err)
		got := readFile(t, p.Checksums)
		if (len(done) == 1 && done[0] == RestoreChecksums && bytes.Equal(got, want)) != c.mend {
			t.Errorf("%s: %v, the file is right: %v", c.name, done, bytes.Equal(got, want))
		}
		if found := inspectAll(t, p, k); (len(found.Findings) == 0) != c.mend {
			t.Errorf("%s: after the repair %v", c.name, found.Findings)
		}
	}
}

// An unfinished file is ignored by readers, and is finished by AddChecksums.
func TestUnfinishedChecksumFile(t *testing.T) {
	p, k, l := mixedLayerWithFile(t, 4096, 9<<20+1536)
	want, _ := expectedTable(t, p, l.Header())
	pieces := 0
	if err := l.AddChecksums(func(int64) error {
		if pieces++; pieces == 60 {
			return errInjected
		}
		return nil
	}); !errors.Is(err, errInjected) || l.HasChecksums() {
		t.Fatalf("%v", err)
	}
	test.Must(t, l.Close())
	l = reopen(t, p, OpenParams{})
	if found := inspectAll(t, p, k); l.HasChecksums() || found.HasChecksums ||
		len(found.Findings) != 0 {
		t.Errorf("half a table counts: %+v", found)
	}
	test.Must(t, os.Truncate(p.Checksums, 0))
	if found := inspectAll(t, p, k); found.HasChecksums || len(found.Findings) != 0 {
		t.Errorf("an empty file counts: %+v", found)
	}
	addChecksums(t, l)
	hasChecksums(t, p, k, l, want)
}

// FuzzChecksumFile tries checksum files of a layer: nothing panics, a file that is opened has a
// whole table, a fault without a remedy changes nothing, and the result of Repair is right.
func FuzzChecksumFile(f *testing.F) {
	p, k, l := mixedLayerWithFile(f, 4096, 1<<20)
	test.Must(f, l.AddChecksums(nil))
	test.Must(f, l.Close())
	whole, err := os.ReadFile(p.Checksums)
	test.Must(f, err)
	f.Add(whole[:SectorSize], whole[checksumTableOffset:], true)
	f.Add(whole[:SectorSize], whole[checksumTableOffset:][:100], false)
	f.Add(make([]byte, SectorSize), []byte{}, false)
	f.Fuzz(func(t *testing.T, header, table []byte, sum bool) {
		file := make([]byte, checksumTableOffset)
		copy(file[:SectorSize], header)
		if sum {
			putChecksum((*[SectorSize]byte)(file))
		}
		given := append(file, table...)
		test.Must(t, os.WriteFile(p.Checksums, given, 0o600))
		found := inspectAll(t, p, k)
		l, err := Open(vfs.OS{}, p, OpenParams{})
		if err == nil {
			if l.HasChecksums() != found.HasChecksums {
				t.Errorf("open: %v, inspected: %v", l.HasChecksums(), found.HasChecksums)
			}
			test.Must(t, l.Close())
		} else if len(found.Findings) == 0 {
			t.Fatal(err)
		}
		done, err := Repair(vfs.OS{}, p, k)
		test.Must(t, err)
		got := readFile(t, p.Checksums)
		if len(done) == 0 && !bytes.Equal(got, given) || len(done) != 0 &&
			!bytes.Equal(got, whole) {
			t.Fatalf("%v: the file is another one; findings %v", done, found.Findings)
		}
	})
}
