package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"cowblk/internal/test"
)

func TestRollback(t *testing.T) {
	s := newStore(t)
	importRaw(t, s, "img", noise(1, imageSize))
	create(t, s, "vm1", CreateOptions{From: "img"})
	at := map[string][]byte{}
	for i, tag := range []string{"t1", "t2", "t3"} {
		put(t, s, "vm1", noise(uint64(10+i), 4096), int64(i)*6144)
		at[tag] = content(t, s, "vm1")
		test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, tag)))
	}
	put(t, s, "vm1", noise(20, 4096), 0)
	create(t, s, "vm2", CreateOptions{From: "vm1@t2"})

	before := snapshot(t, s.Dir())
	plan, err := s.PlanRollback(t.Context(), Ref{"vm1", "t1"})
	test.Must(t, err)
	if !slices.Equal(plan.Lost, []string{"t2", "t3"}) || len(plan.Layers) != 2 ||
		len(plan.Kept) != 1 ||
		!slices.Equal(plan.KeptBy, []string{"vm2"}) || plan.Freed < 2*4096 || plan.Depth != 2 {
		t.Errorf("plan %+v", plan)
	}
	sameFiles(t, before, snapshot(t, s.Dir()))

	o := openDisk(t, s, "vm1")
	test.ErrorIs(t, test.Err(s.Rollback(ctx, Ref{"vm1", "t1"})), ErrInUse,
		"rollback of an open disk")
	test.Must(t, o.Close())
	for _, ref := range []Ref{{"vm1", ""}, {"vm1", "no"}, {"vm9", "t1"}} {
		if _, err := s.Rollback(ctx, ref); !errors.Is(err, ErrNotFound) &&
			!errors.Is(err, ErrInvalid) {
			t.Errorf("rollback to %v: %v", ref, err)
		}
	}

	r, err := s.Rollback(ctx, Ref{"vm1", "t1"})
	test.Must(t, err)
	m, err := s.Disk("vm1")
	if err != nil || m.Head().UUID != r.Head || len(m.Layers) != r.Depth || m.Head().Tag != "" {
		t.Errorf("%+v, %v, after %+v", m, err, r)
	}
	if !bytes.Equal(content(t, s, "vm1"), at["t1"]) || !bytes.Equal(content(t, s, "vm2"),
		at["t2"]) {
		t.Error("vm1 is not what t1 was, or vm2 not what t2 was")
	}
	for _, id := range r.Layers {
		test.ErrorIs(t, test.Err(os.Stat(s.path(layersDir, id.String()))), os.ErrNotExist,
			fmt.Sprintf("layer %s", id))
	}
	put(t, s, "vm1", noise(30, 4096), 4096)
	test.Must(t, test.Err(s.Remove(ctx, "vm2")))
	consistent(t, s, content(t, s, "vm1"))
}

// The remaining layers must be intact before a layer is discarded.
func TestRollbackRefused(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	put(t, s, "vm1", noise(1, 8192), 0)
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "t")))
	m := manifestOf(t, s, "vm1")
	path := s.paths(&m.Layers[0]).Map
	data := readFile(t, path)
	data[4096] ^= 4
	write(t, path, data)
	before := snapshot(t, s.Dir())
	test.ErrorIs(t, test.Err(s.Rollback(ctx, Ref{"vm1", "t"})), ErrRefused,
		"rollback to a damaged layer")
	sameFiles(t, before, snapshot(t, s.Dir()))
}

// A rollback to a tag of a promotion that was decided and interrupted finds the tag.
func TestRollbackToATagOfAnInterruptedPromotion(t *testing.T) {
	h := newMould(t).cast(t, damage{do: func(h *hurt) { h.decided(false) }})
	_, err := h.Rollback(t.Context(), Ref{"vm2", "u"})
	test.Must(t, err)
	_, err = first(h.Disk("vm2")).Tagged("u")
	test.Must(t, err)
}
