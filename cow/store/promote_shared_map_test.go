package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
)

// A disk with a shared map is not promoted to a head without one: there may be no memory,
// descriptor or permission for it at the moment.
func TestPromotionKeepsASharedMap(t *testing.T) {
	var failing atomic.Pointer[string]
	m := faultfs.New()
	p := m.Process(func(c faultfs.Call) faultfs.Fault {
		if op := failing.Load(); op != nil && strings.Contains(*op, c.Op) && strings.HasPrefix(c.Name, faultfs.MemoryDir) {
			return faultfs.Fault{Err: syscall.ENOMEM}
		}
		return faultfs.Fault{}
	})
	s, err := Open("/store", Options{FS: p, Log: slog.New(slog.DiscardHandler), Getenv: func(string) string { return faultfs.MemoryDir }})
	must(t, err)
	ctx := context.Background()
	must(t, errOf(s.Create(ctx, "vm", CreateOptions{Size: 65536})))
	o, err := s.OpenDisk(ctx, "vm", OpenOptions{Serve: true})
	must(t, err)
	defer o.Close()
	if h := o.Disk.Layers()[0]; h.Generation == 0 {
		t.Fatal("the disk has no shared map")
	}
	for _, op := range []string{"stat mkdir", "create", "reserve", "map"} {
		failing.Store(&op)
		pend, err := s.PreparePromotion(ctx, []*Manifest{o.Manifest}, "t")
		if !errors.Is(err, layer.ErrNoShared) || !errors.Is(err, syscall.ENOMEM) {
			t.Errorf("%s fails: expected %v and ENOMEM, found %v", op, layer.ErrNoShared, err)
		}
		if err == nil {
			pend.Close(false)
		}
	}
	failing.Store(nil)
	pend, err := s.PreparePromotion(ctx, []*Manifest{o.Manifest}, "t")
	must(t, err)
	if !pend.Heads()[0].Bitmap().Shared() {
		t.Error("the new head has no shared map")
	}
	pend.Close(false)
}
