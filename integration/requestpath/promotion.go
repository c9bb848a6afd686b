package main

import (
	"context"
	"path/filepath"
	"runtime"
	"time"

	"cowblk/backend"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow"
	"cowblk/cow/store"
	"cowblk/vhost/frontend"
)

const disk = "vm1"

// newStore makes a store with one disk of 64 MiB.
func newStore(dir string) *store.Store {
	s, err := store.Open(dir, store.Options{Log: quiet})
	must(err)
	_, err = s.Create(context.Background(), disk, store.CreateOptions{Size: 64 << 20})
	must(err)
	return s
}

// promotion records cow-promote of a disk whose driver has written, from the command to the event
// COW_SEALED. The caller's side of the control socket counts as well.
func promotion(dir string) {
	ctx := context.Background()
	s := newStore(filepath.Join(dir, "served"))
	d, err := daemon.Open(ctx, daemon.Options{Log: quiet, Store: s, Disks: []string{disk},
		Device: backend.DeviceOptions{Queues: 1}})
	must(err)
	_, stop := d.Start(ctx)
	f, err := frontend.Dial(d.Socket(), frontend.Options{})
	must(err)
	_, err = f.Driver(0).WriteAt(make([]byte, 4096), 0)
	must(err)
	serving, ok := s.Serving(disk)
	if !ok {
		panic("the disk is not served")
	}
	client, err := control.Dial(serving.Control, 10*time.Second)
	must(err)
	events, err := client.Events(ctx)
	must(err)
	time.Sleep(100 * time.Millisecond) // the daemon is idle
	record(dir, "promotion", func() {
		must(client.Run(ctx, "cow-promote", daemon.PromoteArgs{Disks: []string{disk}}, nil))
		for e := range events {
			if e.Event == "COW_SEALED" {
				break
			}
		}
		time.Sleep(time.Second)
	})
	must(f.Close())
	must(stop())
}

// promotionSteps records the steps of a promotion, called as package daemon does.
func promotionSteps(dir string) {
	ctx := context.Background()
	s := newStore(filepath.Join(dir, "stepped"))
	opened, err := s.OpenDisk(ctx, disk, store.OpenOptions{Serve: true,
		Cow: cow.Options{Log: quiet}})
	must(err)
	ch, err := opened.Disk.NewChannel()
	must(err)
	r := &cow.Request{Op: cow.OpWrite, Data: [][]byte{make([]byte, 4096)}, Length: 4096}
	ch.Submit(r)
	must(r.Err)
	ch.Completed(nil)
	must(ch.Close())
	must(opened.Disk.Flush())
	time.Sleep(100 * time.Millisecond) // the flusher is asleep
	var pending *store.Pending
	var p *cow.Promotion
	record(dir, "new head", func() {
		pending, err = s.PreparePromotion(ctx, []*store.Manifest{opened.Manifest}, "")
		must(err)
	})
	record(dir, "prepare", func() {
		p, err = opened.Disk.Prepare(pending.Heads()[0])
		must(err)
	})
	record(dir, "commit", func() { must(pending.Commit()) })
	// With one processor, Swap's goroutine, which seals, does not run before Swap has returned.
	processors := runtime.GOMAXPROCS(1)
	record(dir, "swap", func() { must(cow.Swap(p)) })
	runtime.GOMAXPROCS(processors)
	recordMore(dir, "swap to seal", func() {
		pending.Close(true)
		must(p.Sealed(ctx))
	})
	must(opened.Close())
}
