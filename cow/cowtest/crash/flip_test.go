package crash

import (
	"bytes"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
)

// flipped plays a disk with an image, a sealed layer and a head, closed in order.
func flipped(t *testing.T) (*faultfs.Machine, *sight) {
	t.Helper()
	script, err := Parse(`
		import img
		create vm 32768 512 img
		open vm
		write vm 0+4096
		write vm 8192+512
		close vm
		promote vm one
		open vm
		sum vm
		write vm 512+1024
		write vm 16384+512
		close vm`)
	if err != nil {
		t.Fatal(err)
	}
	m := play(t, &Life{Script: script}).Machine
	s, err := observe(m.Clone())
	if err != nil {
		t.Fatal(err)
	}
	return m, s
}

// A single bit that has turned over is refused, or does not matter: what is served
// is right. Only the data of the head, which may change, has no checksum: there
// exactly the sector is wrong that the bit is in.
func TestBitFlips(t *testing.T) {
	m, want := flipped(t)
	s, err := openStore(m.Process(nil))
	if err != nil {
		t.Fatal(err)
	}
	vm, err := s.Disk("vm")
	if err != nil {
		t.Fatal(err)
	}
	head := path.Join(storeDir, vm.Layers[len(vm.Layers)-1].Data)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range m.Files(storeDir) {
		base := path.Base(name)
		if base == "lock" {
			continue // says nothing that is believed
		}
		content, err := m.Content(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) == 0 {
			continue // of the reserve: the name is all
		}
		t.Run(strings.TrimPrefix(name, storeDir+"/"), func(t *testing.T) {
			refused, harmless, wrong := 0, 0, 0
			for _, bit := range bits(rng, content, long(t)) {
				x := m.Clone()
				if err := x.Flip(name, bit); err != nil {
					t.Fatal(err)
				}
				got, err := observe(x)
				switch {
				case err != nil || len(got.damaged) > 0:
					refused++
				case same(want, got):
					harmless++
				case name == head && oneSector(want, got):
					wrong++
				default:
					t.Fatalf("bit %d (byte %d: %#x): served, and not what was written", bit, bit/8, content[bit/8])
				}
			}
			t.Logf("%d refused, %d harmless, %d sectors of data wrong", refused, harmless, wrong)
			if name == head && wrong == 0 || strings.Contains(name, "/layers/") && name != head && refused == 0 {
				t.Error("the test misses its subject")
			}
		})
	}
}

// bits are those to turn over: all where something is, or a choice of them, and
// some elsewhere.
func bits(rng *rand.Rand, content []byte, all bool) (out []int64) {
	var some []int64
	for i, b := range content {
		if b == 0 && i > 512 {
			continue
		}
		for bit := range int64(8) {
			some = append(some, int64(i)*8+bit)
		}
	}
	if !all {
		rng.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
		some = some[:min(len(some), 250)]
	}
	for range 20 {
		some = append(some, rng.Int64N(int64(len(content))*8))
	}
	return some
}

// same compares what disks and tags hold; what tags are called is not looked at.
func same(a, b *sight) bool {
	if len(a.disks) != len(b.disks) {
		return false
	}
	for name, d := range a.disks {
		e := b.disks[name]
		if e == nil || !bytes.Equal(d.content, e.content) || len(d.tags) < len(e.tags) {
			return false
		}
		for i := range e.tags {
			if !bytes.Equal(d.tags[i], e.tags[i]) {
				return false
			}
		}
	}
	return true
}

// oneSector reports whether no more than one sector of each disk and tag differs.
func oneSector(a, b *sight) bool {
	for name, d := range a.disks {
		e := b.disks[name]
		if differ(d.content, e.content) > 1 {
			return false
		}
		for i := range d.tags {
			if differ(d.tags[i], e.tags[i]) > 1 {
				return false
			}
		}
	}
	return true
}

func differ(a, b []byte) (n int) {
	for off := 0; off < len(a); off += cowtest.SectorSize {
		if !bytes.Equal(a[off:off+cowtest.SectorSize], b[off:off+cowtest.SectorSize]) {
			n++
		}
	}
	return n
}

// Damage of any size to any file of a store is refused or served; nothing panics.
func TestJunk(t *testing.T) {
	m, _ := flipped(t)
	rng := rand.New(rand.NewPCG(2, 2))
	names := m.Files(storeDir)
	n := 400
	if long(t) {
		n = 20_000
	}
	refused := 0
	for range n {
		x := m.Clone()
		for range 1 + rng.IntN(3) {
			name := names[rng.IntN(len(names))]
			content, err := x.Content(name)
			if err != nil || len(content) == 0 {
				continue
			}
			for range 1 + rng.IntN(40) {
				if err := x.Flip(name, rng.Int64N(min(int64(len(content)), 8192)*8)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, err := observe(x); err != nil || len(got.damaged) > 0 {
			refused++
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	t.Logf("%d of %d refused", refused, n)
}
