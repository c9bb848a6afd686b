package layer

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

func inspectAll(t testing.TB, p Paths, k Known) *Inspection {
	t.Helper()
	found, err := Inspect(vfs.OS{}, p, InspectParams{Known: k, Map: true,
		Data: func(int64, int64) error { return nil }})
	test.Must(t, err)
	return found
}

// Every change of owned data is found, with its position; other changes are ignored.
func TestInspectFindsDamagedData(t *testing.T) {
	for _, make := range []func(testing.TB, uint32, int64) (Paths, Known, *Layer){
		mixedLayer, mixedLayerWithFile} {
		findsDamagedData(t, make)
	}
}

func findsDamagedData(t *testing.T, make func(testing.TB, uint32, int64) (Paths, Known, *Layer)) {
	const size = 9<<20 + 1536
	p, k, l := make(t, 4096, size)
	test.Must(t, l.AddChecksums(nil))
	table, _ := expectedTable(t, p, l.Header())
	bitmap := readFile(t, p.Map)
	owned := func(i int) bool { return bitmap[4096+i/8]>>(i%8)&1 != 0 }
	find := func(what func(i int) bool) int {
		for i := 50; i < size/4096; i++ {
			if what(i) {
				return i
			}
		}
		t.Fatal("no such block")
		return 0
	}
	content := func(i int) bool { return binary.LittleEndian.Uint32(table[4*i:]) != 0 }
	data, err := os.OpenFile(p.Data, os.O_RDWR, 0)
	test.Must(t, err)
	defer data.Close()
	for _, c := range []struct {
		name   string
		block  int
		damage func(off int64)
		bad    bool
	}{
		{"bit of data", find(func(i int) bool { return owned(i) && content(i) }),
			func(off int64) { flip(t, p.Data, off+77) }, true},
		{"data lost", find(func(i int) bool { return owned(i) && content(i) }), func(off int64) {
			test.Must(t, unix.Fallocate(int(data.Fd()),
				unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 4096))
		}, true},
		{"junk in a hole", find(func(i int) bool { return owned(i) && !content(i) }),
			func(off int64) { flip(t, p.Data, off+4095) }, true},
		{"last block", size / 4096, func(off int64) { flip(t, p.Data, off+1535) }, true},
		{"not owned", find(func(i int) bool { return !owned(i) }),
			func(off int64) { flip(t, p.Data, off) }, false},
	} {
		was := readFile(t, p.Data)
		c.damage(int64(c.block) * 4096)
		found := inspectAll(t, p, k).Findings
		if c.bad != (len(found) == 1) {
			t.Errorf("%s: %v", c.name, found)
		} else if c.bad {
			end := min(int64(c.block+1)*4096, size) - 1
			if want := checksumFault(p.Data, 0, int64(c.block)*4096, end+1, "",
				"").What; found[0].What != want || found[0].Remedy != NoRemedy {
				t.Errorf("%s: got %v, want %s", c.name, found[0], want)
			}
		}
		test.Must(t, os.WriteFile(p.Data, was, 0o600))
	}
	for i := 0; i < size; i += 3 * 4096 {
		flip(t, p.Data, int64(i))
	}
	found := inspectAll(t, p, k).Findings
	if n := len(found); n != maxBadRanges+1 || !strings.Contains(found[n-1].Found, "more ranges") {
		t.Errorf("much damage: %d findings, the last: %v", n, found[len(found)-1])
	}
}

// A damaged table is computed again if the result is proven to be right.
func TestRestoreChecksums(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(p Paths)
		mend   []string
	}{
		{"bit of an entry", func(p Paths) { flip(t, p.Map, 8192+9) }, []string{RestoreChecksums}},
		{"bit where it is zero", func(p Paths) { flip(t, p.Map, 12287) },
			[]string{RestoreChecksums}},
		{"cut", func(p Paths) { test.Must(t, os.Truncate(p.Map, 8192+3)) },
			[]string{GrowMap, RestoreChecksums}},
		{"cut behind all entries", func(p Paths) { test.Must(t, os.Truncate(p.Map, 12280)) },
			[]string{GrowMap}},
		{"and data", func(p Paths) { flip(t, p.Map, 8192+9); flip(t, p.Data, 1<<20-1) }, nil},
	} {
		p, k, l := mixedLayer(t, 4096, 1<<20)
		test.Must(t, l.AddChecksums(nil))
		test.Must(t, l.Close())
		want := readFile(t, p.Map)
		c.damage(p)
		if found := inspectAll(t, p, k); len(found.Findings) == 0 {
			t.Errorf("%s: nothing found", c.name)
		}
		done, err := Repair(vfs.OS{}, p, k)
		test.Must(t, err)
		got := readFile(t, p.Map)
		if len(done) != len(c.mend) || c.mend != nil && !bytes.Equal(got, want) {
			t.Errorf("%s: %v, the map is right: %v", c.name, done, bytes.Equal(got, want))
		}
		if found := inspectAll(t, p, k); (len(found.Findings) == 0) != (c.mend != nil) {
			t.Errorf("%s: after the repair %v", c.name, found.Findings)
		}
	}
}

// The power fails at every moment of adding checksums: the layer then has none or the right ones,
// and an unfinished file does no harm.
func TestAddChecksumsAtPowerCut(t *testing.T) {
	for _, path := range []string{"", "/apart/sums"} {
		const size = 9<<20 + 1536
		p := Paths{Map: "/map", Data: "/data", Checksums: path}
		from, _, _ := mixedLayer(t, 4096, size)
		m := faultfs.New()
		m.Put(p.Map, readFile(t, from.Map))
		m.Put(p.Data, readFile(t, from.Data))
		fsys := m.Process(nil)
		l, err := Open(fsys, p, OpenParams{})
		test.Must(t, err)
		want, _ := expectedTable(t, from, l.Header())
		tape := m.Record()
		test.Must(t, l.AddChecksums(nil))
		test.Must(t, l.Close())

		rng := rand.New(rand.NewPCG(1, 2))
		device := tape.Play()
		cuts, had := 0, 0
		cut := func() {
			for _, c := range device.Choices(rng, 8, 4) {
				cuts++
				l, err := Open(device.Image(c).Process(nil), p, OpenParams{})
				if err != nil {
					t.Fatalf("%v: %v", c, err)
				}
				if l.HasChecksums() {
					had++
					expectTable(t, l, want)
				}
				test.Must(t, l.AddChecksums(nil))
				expectTable(t, l, want)
				test.Must(t, l.Close())
			}
		}
		cut()
		for _, r := range tape.Records {
			device.Apply(r)
			cut()
		}
		if had == 0 || had == cuts {
			t.Errorf("%d of %d cuts have left data checksums", had, cuts)
		}
		t.Logf("%q: %d cuts, %d of them have left data checksums", path, cuts, had)
	}
}
