package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/internal/test"
)

// A quiesced guest does not wait for another process that changes the store. Another process takes
// the store's lock when the guest stops, and holds it until the guest continues.
func TestStoreLockedWhileGuestQuiesced(t *testing.T) {
	for _, c := range []struct {
		mode, stop, resume string
		disks              []string
	}{
		{qmp.QuiescePause, "stop", "cont", []string{"a"}},
		{qmp.QuiescePause, "stop", "cont", []string{"a", "b"}},
		{qmp.QuiesceGuest, "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", []string{"a", "b"}},
	} {
		t.Run(fmt.Sprint(c.mode, len(c.disks)), func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			for _, d := range c.disks {
				command(t, dir, "create", d, "--size", "1M")
			}
			g := newFakeGuest(t, dir)
			p := start(t, dir, nil, append([]string{"serve"}, c.disks...)...)
			f := dial(t, filepath.Join(dir, "run", "a.sock"))
			ctl, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
			test.Must(t, err)
			lock, err := os.Open(filepath.Join(dir, "lock"))
			test.Must(t, err)
			defer lock.Close()
			var taken, given error
			g.setHook(func(when, command string) {
				switch {
				case when == "before" && command == c.stop:
					taken = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
				case when == "before" && command == c.resume:
					given = unix.Flock(int(lock.Fd()), unix.LOCK_UN)
				}
			})
			args := daemon.PromoteArgs{Disks: c.disks, Tag: "t", Spec: g.spec(c.mode)}
			if err := ctl.Run(context.Background(), "cow-promote", args, nil); err != nil || taken != nil || given != nil {
				t.Errorf("promote: %v; lock: %v, %v", err, taken, given)
			}
			for _, d := range c.disks {
				if n := len(manifestOf(t, dir, d).Layers); n != 2 {
					t.Errorf("disk %s has %d layers, expected 2", d, n)
				}
			}
			f.Close()
			p.end(t)
			command(t, dir, "check")
		})
	}
}

// BenchmarkQuiescedPromotion measures how long a promotion stops a guest, alone and while processes
// create disks in the same store.
func BenchmarkQuiescedPromotion(b *testing.B) {
	for _, creators := range []int{0, 4, 16} {
		b.Run(fmt.Sprintf("creators=%d", creators), func(b *testing.B) {
			dir := shortDir(b)
			command(b, dir, "create", "a", "--size", "1G")
			g := newFakeGuest(b, dir)
			p := start(b, dir, nil, "serve", "a")
			f := dial(b, filepath.Join(dir, "run", "a.sock"))
			ctl, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
			test.Must(b, err)
			var stopped time.Time
			var held []time.Duration
			g.setHook(func(when, command string) {
				switch {
				case when == "before" && command == "stop":
					stopped = time.Now()
				case when == "after" && command == "cont":
					held = append(held, time.Since(stopped))
				}
			})
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for c := range creators {
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						if err := runCommand(dir, "create", fmt.Sprintf("c%d-%d", c, i), "--size", "1G"); err != nil {
							b.Log(err)
						}
					}
				})
			}
			failed := 0
			var total []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				err := ctl.Run(context.Background(), "cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: fmt.Sprintf("t%d", i), Spec: g.spec(qmp.QuiescePause)}, nil)
				if err != nil {
					failed++
				}
				total = append(total, time.Since(start))
			}
			cancel()
			wg.Wait()
			f.Close()
			p.end(b)
			slices.Sort(held)
			slices.Sort(total)
			ms := func(d []time.Duration, q float64) float64 {
				return d[int(q*float64(len(d)-1))].Seconds() * 1000
			}
			b.ReportMetric(ms(held, 0.5), "held-p50-ms")
			b.ReportMetric(ms(held, 1), "held-max-ms")
			b.ReportMetric(ms(total, 0.5), "total-p50-ms")
			b.ReportMetric(ms(total, 1), "total-max-ms")
			b.ReportMetric(float64(failed), "failed")
		})
	}
}
