package crash

import (
	"bytes"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/internal/test"
)

// playClosed plays a disk with an image, a sealed layer and a head, closed in order.
func playClosed(t *testing.T) (*faultfs.Machine, *observation) {
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
	test.Must(t, err)
	m := play(t, &Life{Script: script}).Machine
	s, err := observe(m.Clone())
	test.Must(t, err)
	return m, s
}

// A single flipped bit is refused or harmless: the served content is right. Only the data of a head
// has no checksum, because it may change: there exactly the sector with the bit is wrong.
func TestBitFlips(t *testing.T) {
	m, want := playClosed(t)
	s, err := openStore(m.Process(nil))
	test.Must(t, err)
	vm, err := s.Disk("vm")
	test.Must(t, err)
	head := path.Join(storeDir, vm.Layers[len(vm.Layers)-1].Data)
	rng := rand.New(rand.NewPCG(1, 1))
	for _, name := range m.Files(storeDir) {
		base := path.Base(name)
		if base == "lock" {
			continue // no content of it is believed
		}
		content, err := m.Content(name)
		test.Must(t, err)
		if len(content) == 0 {
			continue // a file of the reserve: only its name matters
		}
		t.Run(strings.TrimPrefix(name, storeDir+"/"), func(t *testing.T) {
			refused, harmless, wrong := 0, 0, 0
			for _, bit := range chooseBits(rng, content, long(t)) {
				x := m.Clone()
				test.Must(t, x.Flip(name, bit))
				got, err := observe(x)
				switch {
				case err != nil || len(got.damaged) > 0:
					refused++
				case sameContents(want, got):
					harmless++
				case name == head && atMostOneSector(want, got):
					wrong++
				default:
					t.Fatalf("bit %d (byte %d: %#x): served, and not what was written", bit, bit/8,
						content[bit/8])
				}
			}
			t.Logf("%d refused, %d harmless, %d sectors of data wrong", refused, harmless, wrong)
			if name == head && wrong == 0 || strings.Contains(name, "/layers/") && name != head &&
				refused == 0 {
				t.Error("the test misses its subject")
			}
		})
	}
}

// chooseBits returns the bits to flip: all or a choice of the bits where data is, and some
// elsewhere.
func chooseBits(rng *rand.Rand, content []byte, all bool) (out []int64) {
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

// sameContents compares the contents of disks and tags, not the names of tags.
func sameContents(a, b *observation) bool {
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

// atMostOneSector reports whether at most one sector of each disk and tag differs.
func atMostOneSector(a, b *observation) bool {
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

// A store with damage of any size to any file is refused or served; nothing panics.
func TestJunk(t *testing.T) {
	m, _ := playClosed(t)
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
				test.Must(t, x.Flip(name, rng.Int64N(min(int64(len(content)), 8192)*8)))
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
