package daemon

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

	"cowblk/backend/backendtest"
	"cowblk/backend/qmp"
	"cowblk/cow/store"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
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
			st := newStore(t, nil, c.disks...)
			g := backendtest.NewGuest(t, t.TempDir())
			d := start(t, st, Options{}, c.disks...)
			f := d.dial("a", frontend.Options{})
			lock, err := os.Open(filepath.Join(st.Dir(), "lock"))
			test.Must(t, err)
			defer lock.Close()
			var taken, given error
			g.SetHook(func(when, command string) {
				switch {
				case when == "before" && command == c.stop:
					taken = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
				case when == "before" && command == c.resume:
					given = unix.Flock(int(lock.Fd()), unix.LOCK_UN)
				}
			})
			_, err = d.promote(t.Context(), PromoteArgs{Disks: c.disks, Tag: "t",
				Spec: g.Spec(c.mode)}, "")
			if err != nil || taken != nil || given != nil {
				t.Errorf("promote: %v; lock: %v, %v", err, taken, given)
			}
			for _, disk := range c.disks {
				if tags := d.manifests.Tags(disk); len(tags) != 1 {
					t.Errorf("disk %s has tags %v, expected 1", disk, tags)
				}
			}
			f.Close()
			d.end()
			wantClean(t, st)
		})
	}
}

// BenchmarkQuiescedPromotion measures how long a promotion stops a guest, alone and while processes
// create disks in the same store.
func BenchmarkQuiescedPromotion(b *testing.B) {
	for _, creators := range []int{0, 4, 16} {
		b.Run(fmt.Sprintf("creators=%d", creators), func(b *testing.B) {
			st := newStore(b, nil, "a")
			g := backendtest.NewGuest(b, b.TempDir())
			d := start(b, st, Options{}, "a")
			d.dial("a", frontend.Options{})
			var stopped time.Time
			var held []time.Duration
			g.SetHook(func(when, command string) {
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
						if _, err := st.Create(ctx, fmt.Sprintf("c%d-%d", c, i),
							store.CreateOptions{Size: 1 << 30}); err != nil && ctx.Err() == nil {
							b.Log(err)
						}
					}
				})
			}
			failed := 0
			var total []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				_, err := d.promote(ctx, PromoteArgs{Disks: []string{"a"}, Tag: fmt.Sprintf("t%d",
					i), Spec: g.Spec(qmp.QuiescePause)}, "")
				if err != nil {
					failed++
				}
				total = append(total, time.Since(start))
			}
			cancel()
			wg.Wait()
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
