package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

func openTag(t testing.TB, s *Store, ref string) *Reading {
	t.Helper()
	r, err := ParseRef(ref)
	test.Must(t, err)
	o, err := s.OpenTag(ctx, r, cow.Options{})
	test.Must(t, err)
	t.Cleanup(func() { o.Close() })
	return o
}

func checkContent(t testing.TB, o *Reading, want []byte) {
	t.Helper()
	got := make([]byte, o.Size())
	test.Must(t, test.Err(o.ReadAt(got, 0)))
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes differ from the %d expected", o.Manifest.Name, len(got), len(want))
	}
}

// taggedDisk is vm1 with the tags one and two over an image, and the content of each.
func taggedDisk(t *testing.T, s *Store) (one, two, now []byte) {
	t.Helper()
	one = noise(1, 1<<20+512)
	importRaw(t, s, "base", one)
	create(t, s, "vm1", CreateOptions{From: "base"})
	step := func(tag string, p []byte, off int) {
		put(t, s, "vm1", p, int64(off))
		if tag != "" {
			test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, tag)))
		}
	}
	patch := func(content []byte, p []byte, off int) []byte {
		c := bytes.Clone(content)
		copy(c[off:], p)
		return c
	}
	a, b, c := noise(2, 5000), noise(3, 9000), noise(4, 512)
	one = patch(one, a, 4096)
	step("one", a, 4096)
	two = patch(one, b, 8192)
	step("two", b, 8192)
	now = patch(two, c, 0)
	step("", c, 0)
	return one, two, now
}

func TestOpenTagOfServedDisk(t *testing.T) {
	s := newStore(t)
	one, two, now := taggedDisk(t, s)
	whole := openTag(t, s, "vm1")
	checkContent(t, whole, now)
	test.Must(t, whole.Close())

	served := openDisk(t, s, "vm1")
	test.Must(t, test.Err(served.Disk.WriteAt(noise(9, 1<<20), 0)))
	first, second := openTag(t, s, "vm1@one"), openTag(t, s, "vm1@two")
	checkContent(t, first, one)
	checkContent(t, second, two)
	if n := len(first.Manifest.Layers); n != 1 {
		t.Errorf("%d layers up to the first tag", n)
	}
	test.ErrorIs(t, test.Err(first.WriteAt(make([]byte, 512), 0)), cow.ErrReadOnly,
		"write to a tag")

	_, err := s.OpenTag(ctx, Ref{Name: "vm1"}, cow.Options{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "vm1@one, vm1@two") {
		t.Errorf("a served disk without a tag: %v", err)
	}
	test.Must(t, served.Close())

	// Readers of a tag block nobody, even if the disk is removed.
	put(t, s, "vm1", noise(10, 512), 0)
	test.Must(t, test.Err(s.Promote(ctx, []string{"vm1"}, "three")))
	checkContent(t, first, one)
	test.Must(t, test.Err(s.Remove(ctx, "vm1")))
	checkContent(t, second, two)
}

func TestOpenTagErrors(t *testing.T) {
	s := newStore(t)
	taggedDisk(t, s)
	for _, test := range []struct {
		ref  Ref
		want error
		text string
	}{
		{Ref{Name: "vm2"}, ErrNotFound, "vm2"},
		{Ref{Name: "vm2", Tag: "one"}, ErrNotFound, "vm2"},
		{Ref{Name: "vm1", Tag: "three"}, ErrNotFound, "the tags one, two"},
		{Ref{Name: "base"}, ErrNotFound, "it is an image"},
		{Ref{Name: "vm1", Tag: "../one"}, ErrInvalid, "tag name"},
		{Ref{Name: "../vm1", Tag: "one"}, ErrInvalid, "disk name"},
	} {
		_, err := s.OpenTag(ctx, test.ref, cow.Options{})
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v", test.ref, err)
		}
	}
	create(t, s, "new", CreateOptions{Size: 1 << 20})
	defer openDisk(t, s, "new").Close()
	_, err := s.OpenTag(ctx, Ref{Name: "new"}, cow.Options{})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(),
		"cowblk promote new --tag NAME") {
		t.Errorf("a served disk without tags: %v", err)
	}
}

// TestOpenTagWaitsForSeal: between the change of the manifest and the seal, the tag's layer belongs
// to the process that promotes.
func TestOpenTagWaitsForSeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.TempDir()+"/store", Options{FS: faultfs.Over(vfs.OS{}, nil), Getenv: noEnv,
			Log: slog.New(slog.DiscardHandler)})
		test.Must(t, err)
		_, _, now := taggedDisk(t, s)
		before := openDisk(t, s, "vm1")
		m := before.Manifest
		p, err := s.PreparePromotion(ctx, []*Manifest{m}, "three")
		test.Must(t, err)
		test.Must(t, p.Commit())
		short, cancel := context.WithTimeout(ctx, 3*sealPoll)
		defer cancel()
		ref := Ref{Name: "vm1", Tag: "three"}
		test.ErrorIs(t, test.Err(s.OpenTag(short, ref, cow.Options{})), context.DeadlineExceeded,
			"while the head is still written")
		var r *Reading
		opened := test.Go(func() (err error) {
			r, err = s.OpenTag(ctx, ref, cow.Options{})
			return err
		})
		if opened.EndsWithin(sealWait / 2) {
			t.Error("the tag was opened while its layer was still written")
		}
		swapped, err := before.Disk.Promote(p.Heads()[0])
		test.Must(t, err)
		<-swapped.Done()
		test.Must(t, swapped.Err())
		p.Close(true)
		test.Must(t, opened.Wait())
		checkContent(t, r, now)
		if h := r.Layers(); h[len(h)-1].State != layer.Sealed {
			t.Error("the tag's layer is not sealed")
		}
		test.Must(t, errors.Join(r.Close(), before.Close()))
	})
}
