package layer

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"cowblk/cow/cowtest/faultfs"
)

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
		must(t, err)
		want, _ := expectedTable(t, from, l.Header())
		tape := m.Record()
		must(t, l.AddChecksums(nil))
		must(t, l.Close())

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
				must(t, l.AddChecksums(nil))
				expectTable(t, l, want)
				must(t, l.Close())
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

func expectTable(t *testing.T, l *Layer, want []byte) {
	t.Helper()
	sums, err := l.Checksums()
	must(t, err)
	got := make([]byte, len(want))
	must(t, sums.Load(got, nil, 0, true))
	if !bytes.Equal(got, want) {
		t.Fatal("the table is another one")
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	must(t, err)
	return content
}
