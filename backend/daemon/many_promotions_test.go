package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"

	"cowblk/backend"
	"cowblk/backend/backendtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// manyEnv sets the number of promotions of TestManyPromotions; default: 100.
const manyEnv = "COWBLK_DAEMON_PROMOTIONS"

// resources counts the resources of this process.
type resources struct {
	fds, goroutines int
	heap            uint64
}

func openResources(t *testing.T) (r resources) {
	t.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return resources{test.CountFDs(t), runtime.NumGoroutine(), m.HeapAlloc}
}

// A disk is promoted repeatedly while it is read and written. A promotion leaves a layer, which is
// two files and two descriptors, and nothing else.
func TestManyPromotions(t *testing.T) {
	count := 100
	if v := os.Getenv(manyEnv); v != "" {
		var err error
		if count, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	// Syncs would take most of the time, and nothing here depends on them.
	st := newStore(t, faultfs.WithoutSync(vfs.OS{}), "test")
	d := start(t, st, Options{Device: backend.DeviceOptions{Queues: 1}}, "test")
	f := d.dial("test", frontend.Options{})
	var pause atomic.Bool
	var stopped atomic.Bool
	paused := make(chan struct{})
	writer := make(chan error, 1)
	go func() {
		p := make([]byte, 4096)
		for n := uint64(0); !stopped.Load(); n++ {
			if pause.Load() {
				paused <- struct{}{}
				<-paused
			}
			off := int64(n*0x9e3779b97f4a7c15>>52) * 16384 % backendtest.Size
			_, err := f.Driver(0).WriteAt(p, off)
			if err == nil {
				_, err = f.Driver(0).ReadAt(p, off)
			}
			if err == nil && n%64 == 0 {
				err = f.Driver(0).Flush()
			}
			if err != nil {
				writer <- err
				return
			}
		}
		writer <- nil
	}()
	// quiet counts resources while nothing runs.
	quiet := func(layers int) (last resources) {
		pause.Store(true)
		<-paused
		defer func() { pause.Store(false); paused <- struct{}{} }()
		test.Eventually(t, "all former heads are sealed",
			func() bool { return d.exports[0].dev.Disk().Stats().Unsealed == 0 })
		for sub, n := range map[string]int{"layers": layers, "tmp": 0, "disks/test": 2} {
			if e, err := os.ReadDir(filepath.Join(st.Dir(), sub)); err != nil || len(e) != n {
				t.Errorf("%s: %d entries, expected %d: %v", sub, len(e), n, err)
			}
		}
		same := 0 // what follows a promotion, such as checksums, ends
		test.Eventually(t, "the number of descriptors stays the same", func() bool {
			now := openResources(t)
			if same++; now.fds != last.fds || now.goroutines != last.goroutines {
				same = 0
			}
			last = now
			return same == 20
		})
		return last
	}
	made := 0
	promote := func(n int) {
		for range n {
			made++
			tag(t, d.Daemon, fmt.Sprint("t", made))
		}
	}
	promote(10) // creates what is created once
	before := quiet(11)
	promote(count)
	after := quiet(11 + count)
	stopped.Store(true)
	test.Check(t, <-writer)
	t.Logf("%d promotions: %+v, then %+v: %.2f descriptors and %d bytes of heap a layer", count,
		before, after,
		float64(after.fds-before.fds)/float64(count), (int64(after.heap)-int64(before.heap))/int64(
			count))
	// The checksummer has the two files of one layer open, for as long as it rests.
	if got := after.fds - before.fds; got < 2*count-2 || got > 2*count+2 {
		t.Errorf("%d descriptors for %d layers, expected two each", got, count)
	}
	if after.goroutines > before.goroutines+2 {
		t.Errorf("%d goroutines, %d before", after.goroutines, before.goroutines)
	}
	if grown := int64(after.heap) - int64(before.heap); grown > int64(count)*8192+1<<20 {
		t.Errorf("%d bytes of heap for %d layers", grown, count)
	}
}
