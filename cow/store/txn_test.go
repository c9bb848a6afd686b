package store

import (
	"context"
	"os"
	"testing"
	"time"
)

// A promotion's journal stays while another process has the store locked: a check that has read the
// manifest before the change finds the new head there.
func TestJournalStaysWhileTheStoreIsLocked(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	m := create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	hurried, err := Open(s.Dir(), Options{LockTimeout: time.Millisecond})
	must(t, err)
	p, err := hurried.PreparePromotion(ctx, []*Manifest{m}, "t")
	must(t, err)
	must(t, s.locked(ctx, func() error {
		if err := p.Commit(); err != nil {
			return err
		}
		for _, h := range p.Heads() {
			must(t, h.Close())
		}
		p.Close(true)
		works, err := os.ReadDir(s.path(tmpDir))
		if err != nil || len(works) != 1 {
			t.Fatalf("work directories: %v, %v", works, err)
		}
		j, err := s.readJournal(s.path(tmpDir, works[0].Name()))
		if err != nil || len(j.Layers) != 1 || j.Layers[0] != p.Manifests()[0].Head().UUID {
			t.Errorf("journal: %+v, %v", j, err)
		}
		return nil
	}))
	create(t, s, "vm2", CreateOptions{Size: 1 << 20})
	consistent(t, s, nil)
	openDisk(t, s, "vm1").Close()
}
