package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// check does not disturb a disk that a process has open, and does not check what that process may
// change.
func TestCheckOfAServedDisk(t *testing.T) {
	h := newMould(t).cast(t, damage{do: func(*hurt) {}})
	o := openDisk(t, h.Store, "vm1")
	defer o.Close()
	mapPath, _ := h.files("vm1")
	h.put(mapPath, layer.MapOffset+100, 0xff) // as if in the middle of a write
	for _, repair := range []bool{false, true} {
		r := check(t, h.Store, CheckOptions{Repair: repair})
		if r.Found != 0 || r.Failed != 0 {
			t.Errorf("repair %v: %v", repair, problemTexts(h, r))
		}
		i := slices.IndexFunc(r.Reports, func(k *Report) bool { return k.Name == "vm1" })
		if k := r.Reports[i]; k.Serving == nil || k.Serving.PID != os.Getpid() || k.Unclean ||
			len(k.Notes) != 1 || !strings.Contains(k.Notes[0], "were not checked") {
			t.Errorf("vm1: %+v", k)
		}
	}
	if _, err := o.Disk.WriteAt(noise(1, 4096), 0); err != nil {
		t.Error(err)
	}
	// A damaged sealed layer below is found. It cannot be repaired while in use.
	sealed, _ := h.files("SEALED")
	h.put(sealed, layer.MapOffset+100, 1)
	r := check(t, h.Store, CheckOptions{Repair: true, Names: []string{"vm1"}})
	same(t, "damaged below", problemTexts(h, r), []string{"left vm1 layer SEALED: bitmap"})
	if !strings.Contains(r.Reports[0].Problems[0].Advice, "stop the processes") {
		t.Errorf("advice: %+v", r.Reports[0].Problems[0])
	}
}

// check during promotions, clones and removals never sees half of a change.
func TestCheckBesideChanges(t *testing.T) {
	h := newMould(t).cast(t, damage{do: func(*hurt) {}})
	done := make(chan error, 1)
	go func() {
		s := openStore(t, h.Dir())
		s.fs = h.fs
		done <- func() error {
			for i := range 8 {
				tag := string(rune('a' + i))
				if _, err := s.Promote(ctx, []string{"vm1", "vm2"}, tag); err != nil &&
					!errors.Is(err, ErrInUse) {
					return err
				} else if err != nil {
					continue // check has it open
				}
				if _, err := s.Create(ctx, "new"+tag,
					CreateOptions{From: "vm1@" + tag}); err != nil {
					return err
				}
				if _, err := s.Remove(ctx, "new"+tag); err != nil && !errors.Is(err, ErrInUse) {
					return err
				}
			}
			return nil
		}()
	}()
	for {
		r := check(t, h.Store, CheckOptions{})
		if r.Found != 0 || r.Failed != 0 {
			t.Errorf("%v", problemTexts(h, r))
			for _, k := range r.Reports {
				if k.Error != "" {
					t.Error(k.Name, k.Error)
				}
			}
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
	}
}

// --fast reads only the maps that a crash may have left unfinished.
func TestCheckFast(t *testing.T) {
	h := newMould(t).cast(t, damage{do: func(h *hurt) {
		h.dirty("vm1")
		for _, name := range []string{"vm1", "vm2"} {
			p, _ := h.files(name)
			h.put(p, layer.MapOffset+100, 1)
		}
	}})
	same(t, "fast", problemTexts(h, check(t, h.Store, CheckOptions{Depth: CheckFast})),
		[]string{"repairable vm1 layer vm1: bitmap"})
	// When it is marked clean it is as fast as the others.
	check(t, h.Store, CheckOptions{Depth: CheckFast, Repair: true})
	p, _ := h.files("vm1")
	h.put(p, layer.MapOffset+100, 1)
	same(t, "fast", problemTexts(h, check(t, h.Store, CheckOptions{Depth: CheckFast})), nil)
	if r := check(t, h.Store, CheckOptions{}); r.Found != 2 {
		t.Errorf("not fast: %v", problemTexts(h, r))
	}
}

// --full hashes images, reads all data and compares it with its checksums.
func TestCheckFull(t *testing.T) {
	m := newMould(t)
	h := m.cast(t, damage{do: func(*hurt) {}})
	read := map[string]int64{}
	r := check(t, h.Store, CheckOptions{Depth: CheckFull, Progress: func(what string, done,
		total int64) {
		read[what] = done
	}})
	if r.Found != 0 || read["img"] != mouldSize || read[h.role("SEALED").Data] != mouldSize ||
		read[h.role("vm1").Data] != mouldSize {
		t.Errorf("%v; read %v", problemTexts(h, r), read)
	}
	// No sample and no time shows this change of content. The recorded hash is changed instead.
	img, err := h.Image("img")
	test.Must(t, err)
	img.ChunkSHA256 = sum(nil)
	test.Must(t, h.writeDocument(h.path(imagesDir, "img", imageFile), img))
	if r := check(t, h.Store, CheckOptions{}); r.Found != 0 {
		t.Errorf("not full: %v", problemTexts(h, r))
	}
	same(t, "full", problemTexts(h, check(t, h.Store, CheckOptions{Depth: CheckFull,
		Names: []string{"img"}})), []string{"left img image data: chunk digest of the image"})
	// A layer without data checksums is a note. Data that differs from its checksum is a problem.
	if notes := r.Reports[slices.IndexFunc(r.Reports, func(k *Report) bool {
		return k.Name == "vm1"
	})].Notes; len(notes) != 1 {
		t.Errorf("notes %q", notes)
	}
	h.sums()
	_, data := h.files("SEALED")
	flip(t, data, 5000)
	full := check(t, h.Store, CheckOptions{Depth: CheckFull, Names: []string{"vm1"}})
	same(t, "full", problemTexts(h, full), []string{
		"left img image data: chunk digest of the image",
		"left vm1 image data: chunk digest of the image",
		"left vm1 layer SEALED: checksum of the data from byte 4096 to 8191",
	})
	if n := len(full.Reports[0].Notes); n != 0 {
		t.Errorf("notes %q", full.Reports[0].Notes)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	test.ErrorIs(t, test.Err(h.Check(ctx, CheckOptions{Depth: CheckFull})), context.Canceled,
		"interrupted")
}

// Orphans with content are removed only on request, and never while a document that may name them
// is unreadable.
func TestPrune(t *testing.T) {
	m := newMould(t)
	h := m.cast(t, damage{do: func(h *hurt) { h.orphan(5) }})
	check(t, h.Store, CheckOptions{Repair: true})
	if r := check(t, h.Store, CheckOptions{Repair: true, Prune: true}); r.Repaired != 1 ||
		r.Left() != 0 {
		t.Errorf("pruned: %v", problemTexts(h, r))
	}
	if r := check(t, h.Store, CheckOptions{}); r.Found != 0 {
		t.Errorf("afterwards: %v", problemTexts(h, r))
	}
	h = m.cast(t, damage{do: func(h *hurt) {
		h.orphan(5)
		h.remove(h.path(disksDir, "vm1", diskFile))
	}})
	if r := check(t, h.Store, CheckOptions{Repair: true, Prune: true}); r.Repaired != 0 ||
		r.Left() != 3 {
		t.Errorf("beside a lost manifest: %v", problemTexts(h, r))
	}
	h = m.cast(t, damage{do: func(h *hurt) { h.orphan(5); h.work(journalFile, "{") }})
	if r := check(t, h.Store, CheckOptions{Repair: true, Prune: true}); r.Repaired != 0 ||
		r.Left() != 2 {
		t.Errorf("beside a damaged journal: %v", problemTexts(h, r))
	}
}

func TestCheckNames(t *testing.T) {
	s := newStore(t)
	if r := check(t, s, CheckOptions{}); len(r.Reports) != 0 || r.Found != 0 {
		t.Errorf("no store: %+v", r)
	}
	if _, err := os.Stat(s.Dir()); err == nil {
		t.Error("a store was made")
	}
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	for name, want := range map[string]error{"nosuch": ErrNotFound, "a/b": ErrInvalid,
		"": ErrInvalid} {
		test.ErrorIs(t, test.Err(s.Check(ctx, CheckOptions{Names: []string{name}})), want,
			fmt.Sprintf("%q", name))
	}
	if r := check(t, s, CheckOptions{Names: []string{"vm1", "vm1"}}); len(r.Reports) != 1 {
		t.Errorf("twice: %+v", r.Reports)
	}
}

// The record of a change of several disks is accepted only if every manifest in it would be.
func FuzzChange(f *testing.F) {
	good := `{"from":["11111111-0000-4000-8000-000000000001"],"to":[{"version":1,"name":"vm1","size":512,"block-size":512,` +
		`"created":"2006-11-27T12:00:00Z","layers":[{"uuid":"11111111-0000-4000-8000-000000000001",` +
		`"map":"layers/11111111-0000-4000-8000-000000000001/map","data":"layers/11111111-0000-4000-8000-000000000001/data","data-offset":0,"created":"2006-11-27T12:00:00Z"}]}]}`
	if err := new(change).decode([]byte(good)); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(good))
	f.Add([]byte(strings.Replace(good, `"vm1"`, `"../x"`, 1)))
	f.Add([]byte(`{"from":[null],"to":[null]}`))
	f.Add([]byte(`{"from":["11111111-0000-4000-8000-000000000001"],"to":[{"version":1,"name":"vm1"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := new(change)
		if c.decode(data) != nil {
			return
		}
		for i, m := range c.To {
			if CheckName("disk", m.Name) != nil || m.check(m.Name) != nil || len(c.From) <= i {
				t.Fatalf("accepted %+v", m)
			}
			m.Head()
		}
	})
}

// A description of an image is accepted only if it is consistent.
func FuzzImage(f *testing.F) {
	s := newStore(f)
	importRaw(f, s, "img", noise(1, 512))
	path := s.path(imagesDir, "img", imageFile)
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1,"name":"img","size":-512}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(Image)
		if err := decodeDocument(path, data, m,
			func() error { return m.check("img") }); err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("%v is not ErrRefused", err)
			}
			return
		}
		if m.Size <= 0 || m.Size%512 != 0 || !isDigest(m.SHA256) && !isDigest(m.ChunkSHA256) ||
			m.Fingerprint.IsZero() {
			t.Fatalf("accepted %+v", m)
		}
	})
}

// A disk that another process removes during the check is no problem.
func TestCheckBesideARemoval(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	lock, err := s.LockDisk("vm1")
	test.Must(t, err)
	defer lock.Unlock()
	other := openStore(t, s.Dir())
	// It goes just before the second read of its manifest, after it was found open.
	reads := 0
	other.fs = faultfs.Over(vfs.OS{}, func(c faultfs.Call) faultfs.Fault {
		if c.Op == "open" && c.Name == s.path(disksDir, "vm1", diskFile) {
			if reads++; reads == 2 {
				test.Must(t, os.RemoveAll(filepath.Dir(c.Name)))
			}
		}
		return faultfs.Fault{}
	})
	r, err := other.Check(ctx, CheckOptions{Names: []string{"vm1"}})
	test.Must(t, err)
	if r.Found != 0 || r.Failed != 0 {
		t.Errorf("%+v", r)
	}
}
