package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// The next command removes the transaction directory of a dead process, even if it cannot know
// which layers of the journal are needed. Layers that an unreadable disk may need stay. This is
// reported once, and cowblk check shows them when the disk can be read.
func TestDeadWorkIsDroppedBesideDamage(t *testing.T) {
	for _, c := range []struct {
		name    string
		journal func(orphan uuid.UUID) string
		stays   bool // the journal's layer is kept
	}{
		{"of an older version", func(id uuid.UUID) string {
			return string(first(json.Marshal(journal{Layers: []uuid.UUID{id}})))
		}, true},
		{"of the damaged disk", func(id uuid.UUID) string {
			return string(first(json.Marshal(journal{Layers: []uuid.UUID{id},
				Disks: []string{"vm2"}})))
		}, true},
		{"of another disk", func(id uuid.UUID) string {
			return string(first(json.Marshal(journal{Layers: []uuid.UUID{id},
				Disks: []string{"vm1"}})))
		}, true}, // vm2 may have been copied from it by hand
		{"of a disk that is gone", func(id uuid.UUID) string {
			return string(first(json.Marshal(journal{Layers: []uuid.UUID{id},
				Disks: []string{"vm9"}})))
		}, true},
		{"cut off", func(id uuid.UUID) string { return `{"layers":["` + id.String() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer
			s, calls := countingStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			create(t, s, "vm2", CreateOptions{Size: 1 << 20})
			manifest := s.path(disksDir, "vm2", diskFile)
			saved := first(os.ReadFile(manifest))
			test.Must(t, os.Truncate(manifest, 50))
			orphan := uuid.New()
			dir := s.path(layersDir, orphan.String())
			test.Must(t, os.Mkdir(dir, 0o755))
			l, err := layer.CreateHead(s.fs, layer.Paths{Map: filepath.Join(dir, mapFile),
				Data: filepath.Join(dir, dataFile)},
				layer.CreateParams{UUID: orphan, Size: 1 << 20, BlockSize: 4096, Created: s.now(),
					Perm: 0o600})
			test.Must(t, err)
			test.Must(t, l.Close())
			work := s.path(tmpDir, uuid.NewString())
			test.Must(t, os.MkdirAll(work, 0o755))
			write(t, filepath.Join(work, lockFile), nil)
			write(t, filepath.Join(work, journalFile), []byte(c.journal(orphan)))
			s.log = slog.New(slog.NewTextHandler(&said,
				&slog.HandlerOptions{Level: slog.LevelWarn}))
			create(t, s, "vm3", CreateOptions{Size: 1 << 20})
			warned := said.String()
			before := calls.calls.Load()
			create(t, s, "vm4", CreateOptions{Size: 1 << 20})
			after := calls.calls.Load()
			create(t, s, "vm5", CreateOptions{Size: 1 << 20})
			if calls.calls.Load()-after != after-before {
				t.Errorf("creates beside the damage took %d calls, then %d", after-before,
					calls.calls.Load()-after)
			}
			if said.String() != warned {
				t.Errorf("said again: %s", strings.TrimPrefix(said.String(), warned))
			}
			if left, _ := os.ReadDir(s.path(tmpDir)); len(left) > 0 {
				t.Errorf("in tmp: %v", left)
			}
			if _, err := os.Stat(dir); (err == nil) != c.stays {
				t.Errorf("the layer of the journal: %v", err)
			}
			if c.stays != (warned != "") && c.stays {
				t.Errorf("said %q", warned)
			}
			write(t, manifest, saved)
			r, err := s.Check(ctx, CheckOptions{Repair: true, Prune: true})
			if err != nil || r.Found != r.Repaired || (r.Found == 1) != c.stays {
				t.Errorf("check after the damage: %+v, %v", r, err)
			}
			content(t, s, "vm2")
		})
	}
}

// A temporary error is no damage: the next command removes what a failed promotion has left.
func TestErrorThatPassesKeepsTheWork(t *testing.T) {
	s := newStore(t)
	m := create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	p, err := s.PreparePromotion(ctx, []*Manifest{m}, "t")
	test.Must(t, err)
	failed := 0
	s.fs = faultfs.Over(vfs.OS{}, func(c faultfs.Call) (f faultfs.Fault) {
		if c.Op == "open" && c.Name == s.path(disksDir, "vm1", diskFile) && failed < 2 {
			failed, f.Err = failed+1, syscall.EMFILE
		}
		return f
	})
	p.Close(false)
	if works, _ := os.ReadDir(s.path(tmpDir)); len(works) != 1 {
		t.Fatalf("%d transaction directories, expected the one whose manifest could not be read",
			len(works))
	}
	create(t, s, "vm2", CreateOptions{Size: 1 << 20})
	consistent(t, s, nil)
}

// Many concurrent commands wait for each other and do not fail.
func TestManyCreatesAtOnce(t *testing.T) {
	s := newStore(t)
	create(t, s, "golden", CreateOptions{Size: 1 << 20})
	test.Must(t, test.Err(s.Promote(ctx, []string{"golden"}, "t")))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			one := openStore(t, s.Dir())
			name := fmt.Sprint("d", i)
			if _, err := one.Create(ctx, name, CreateOptions{From: "golden@t"}); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if _, err := one.Remove(ctx, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	consistent(t, s, nil)
	order := []string{"golden"}
	for i := 1; i < 20; i += 2 {
		order = append(order, fmt.Sprint("d", i))
	}
	dismantled(t, s, nil, order...)
}

// A promotion's journal stays while another process has the store locked: a check that has read the
// manifest before the change finds the new head there.
func TestJournalStaysWhileTheStoreIsLocked(t *testing.T) {
	s := newStore(t)
	m := create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	hurried, err := Open(s.Dir(), Options{LockTimeout: time.Millisecond})
	test.Must(t, err)
	p, err := hurried.PreparePromotion(ctx, []*Manifest{m}, "t")
	test.Must(t, err)
	test.Must(t, s.locked(ctx, func() error {
		if err := p.Commit(); err != nil {
			return err
		}
		for _, h := range p.Heads() {
			test.Must(t, h.Close())
		}
		p.Close(true)
		works, err := os.ReadDir(s.path(tmpDir))
		if err != nil || len(works) != 1 {
			t.Fatalf("transaction directories: %v, %v", works, err)
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
