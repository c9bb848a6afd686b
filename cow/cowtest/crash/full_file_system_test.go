package crash

import (
	"context"
	"math/rand/v2"
	"os"
	"path"
	"testing"

	"cowblk/internal/test"
)

// A disk that a power cut has left can be removed on a full file system without a reserve:
// everything needed for it is durable with the disk.
func TestRemovalNeedsNoSpaceAfterCut(t *testing.T) {
	script, err := Parse(`create vm 32768 4096`)
	test.Must(t, err)
	p := play(t, &Life{Script: script})
	d := p.Tape.Play()
	for _, r := range p.Tape.Records {
		d.Apply(r)
	}
	for _, c := range d.Choices(rand.New(rand.NewPCG(1, 1)), 100, 20) {
		m := d.Image(c)
		m.SetFreePages(0)
		s, err := openStore(m.Process(nil))
		test.Must(t, err)
		test.Must(t, test.Err(s.Remove(context.Background(), "vm")), "keeping", c)
	}
}

// The removal of a damaged disk needs no space either, also if a power cut has removed the index of
// manifests.
func TestRemovalOfDamagedNeedsNoSpace(t *testing.T) {
	script, err := Parse(`create vm 32768 4096`)
	test.Must(t, err)
	m := play(t, &Life{Script: script}).Machine
	p := m.Process(nil)
	f, err := p.OpenFile(manifestPath("vm"), os.O_RDWR, 0)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		err = p.Remove(path.Join(storeDir, "index", "disks"))
	}
	test.Must(t, err)
	m.SetFreePages(0)
	s, err := openStore(p)
	test.Must(t, err)
	test.Must(t, test.Err(s.RemoveDamaged(context.Background(), "vm")))
}
