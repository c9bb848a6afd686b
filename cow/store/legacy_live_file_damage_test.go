package store

import (
	"context"
	"os"
	"testing"
)

// A disk on a former head that was neither closed in order nor sealed is opened although the
// manifest of another disk is damaged. The test for a killed older version does not need that
// manifest.
func TestFormerHeadBesideDamage(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, t.TempDir())
	create(t, s, "other", CreateOptions{Size: 1 << 20})
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	o, err := s.OpenDisk(ctx, "vm1", OpenOptions{})
	must(t, err)
	must(t, errOf(o.Disk.Detach()))
	p, err := s.PreparePromotion(ctx, []*Manifest{o.Manifest}, "t")
	must(t, err)
	for _, h := range p.Heads() {
		must(t, h.Close())
	}
	must(t, p.Commit())
	p.Close(true)
	must(t, o.Lock.Unlock())
	must(t, os.Truncate(s.path(disksDir, "other", diskFile), 100))
	content(t, s, "vm1")
}
