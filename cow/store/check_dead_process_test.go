package store

import (
	"os"
	"slices"
	"strings"
	"testing"

	"cowblk/cow"
	"cowblk/internal/test"
)

// die starts a process that promotes vm1 to tag (if not empty), writes to vm1 without a flush and
// is killed. It returns the content that the disk must have.
func die(t *testing.T, tag ...string) (*hurt, []byte) {
	t.Helper()
	h := newMould(t).cast(t, damage{do: func(*hurt) {}})
	s := openStore(t, h.Dir())
	want := content(t, s, "vm1")
	copy(want[16384:], noise(8, 8192))
	p := start(t, append([]string{"die", h.Dir(), "vm1"}, tag...)...)
	if got := p.line(t); got != "now" {
		t.Fatal(got)
	}
	p.end()
	return &hurt{Store: s, t: t}, want
}

// A check or a repair, which closes the disk, does not lose the unflushed writes of a killed
// process.
func TestCheckAfterTheProcessDied(t *testing.T) {
	h, want := die(t)
	for _, o := range []CheckOptions{{Depth: CheckFast}, {}, {Repair: true}} {
		r := check(t, h.Store, o)
		i := slices.IndexFunc(r.Reports, func(k *Report) bool { return k.Name == "vm1" })
		if k := r.Reports[i]; r.Found != 0 || r.Failed != 0 || !k.Unclean || len(k.Notes) != 2 {
			t.Errorf("%+v: %v, %+v", o, problemTexts(h, r), k)
		}
	}
	if r := check(t, h.Store, CheckOptions{Depth: CheckFast}); slices.ContainsFunc(r.Reports,
		func(k *Report) bool { return k.Unclean }) {
		t.Error("it is not closed after the repair")
	}
	m, err := h.Disk("vm1")
	test.Must(t, err)
	for _, dir := range h.SharedDirs() {
		entries, _ := os.ReadDir(dir)
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			return strings.HasPrefix(e.Name(), m.Head().UUID.String())
		}) {
			t.Error("a shared map is left")
		}
	}
	if string(content(t, h.Store, "vm1")) != string(want) {
		t.Error("a write is lost")
	}
}

// The process is killed in a promotion. The former head is sealed with all its writes, by whichever
// disk is opened.
func TestRepairSealsWhatADeadProcessLeft(t *testing.T) {
	h, want := die(t, "u")
	create(t, h.Store, "a-clone", CreateOptions{From: "vm1@u"})
	r := check(t, h.Store, CheckOptions{})
	if r.Found != 1 || r.Repairable != 1 {
		t.Errorf("found %d: %v", r.Found, problemTexts(h, r))
	}
	if r := check(t, h.Store, CheckOptions{Repair: true}); r.Repaired != 1 || r.Left() != 0 {
		t.Errorf("repair: %v", problemTexts(h, r))
	}
	for _, name := range []string{"vm1", "a-clone"} {
		if string(content(t, h.Store, name)) != string(want) {
			t.Errorf("%s: a write is lost", name)
		}
	}
	if r := check(t, h.Store, CheckOptions{}); r.Found != 0 {
		t.Errorf("afterwards: %v", problemTexts(h, r))
	}
}

// The clone is opened first. The shared map of the dead process belongs to the disk.
func TestCloneOpenedBeforeTheDiskOfADeadProcess(t *testing.T) {
	h, want := die(t, "u")
	create(t, h.Store, "a-clone", CreateOptions{From: "vm1@u"})
	tag, err := h.OpenTag(ctx, Ref{"vm1", "u"}, cow.Options{})
	test.Must(t, err)
	got := make([]byte, len(want))
	if _, err := tag.ReadAt(got, 0); err != nil || string(got) != string(want) {
		t.Errorf("the tag lacks a write: %v", err)
	}
	if err := tag.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"a-clone", "vm1"} {
		if string(content(t, h.Store, name)) != string(want) {
			t.Errorf("%s: a write is lost", name)
		}
	}
}
