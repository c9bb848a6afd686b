package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// manyEnv sets the number of promotions of TestManyPromotions; default: 100.
const manyEnv = "COWBLK_TEST_PROMOTIONS"

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
	dir := storeWith(t, "64M", "a")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var log bytes.Buffer
	a := &app{
		in: strings.NewReader(""), out: &log, err: &log, getenv: func(string) string { return "" }, storeDir: dir,
		terminal: func(any) bool { return false }, kvm: func() bool { return false },
		// Syncs would take most of the time, and nothing here depends on them.
		files: faultfs.WithoutSync(vfs.OS{}),
	}
	go func() { ended <- a.serve(ctx, []string{"a"}, &serveFlags{fd: -1, queues: 1}) }()
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	test.Must(t, err)
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
			off := int64(n*0x9e3779b97f4a7c15>>52) * 16384 % (64 << 20)
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
	quiet := func(layers int) resources {
		pause.Store(true)
		<-paused
		defer func() { pause.Store(false); paused <- struct{}{} }()
		waitSealed(t, c)
		for sub, n := range map[string]int{"layers": layers, "tmp": 0, "disks/a": 2} {
			if e, err := os.ReadDir(filepath.Join(dir, sub)); err != nil || len(e) != n {
				t.Errorf("%s: %d entries, expected %d: %v", sub, len(e), n, err)
			}
		}
		// Connections and goroutines of the last commands end.
		var r resources
		same := 0
		test.Eventually(t, "the resources stay the same", func() bool {
			now := openResources(t)
			if same++; now.fds != r.fds || now.goroutines != r.goroutines {
				same = 0
			}
			r = now
			return same == 20
		})
		return r
	}
	made := 0
	promote := func(n int) {
		for range n {
			made++
			args := map[string]any{"disks": []string{"a"}, "tag": fmt.Sprintf("t%d", made)}
			test.Must(t, c.Run(ctx, "cow-promote", args, nil))
		}
	}
	promote(10) // creates what is created once
	before := quiet(11)
	promote(count)
	after := quiet(11 + count)
	stopped.Store(true)
	test.Check(t, <-writer)
	t.Logf("%d promotions: %+v, then %+v: %.2f descriptors and %d bytes of heap a layer", count, before, after,
		float64(after.fds-before.fds)/float64(count), (int64(after.heap)-int64(before.heap))/int64(count))
	// The last former head's own two files may be open, or closed already, at each of the counts.
	if got := after.fds - before.fds; got < 2*count-2 || got > 2*count+2 {
		t.Errorf("%d descriptors for %d layers, expected two each", got, count)
	}
	if after.goroutines > before.goroutines+2 {
		t.Errorf("%d goroutines, %d before", after.goroutines, before.goroutines)
	}
	if grown := int64(after.heap) - int64(before.heap); grown > int64(count)*8192+1<<20 {
		t.Errorf("%d bytes of heap for %d layers", grown, count)
	}
	f.Close()
	stop()
	if err := <-ended; err != nil {
		t.Errorf("%v\n%s", err, log.String())
	}
}

// At the limit of open files a process refuses to promote, says what to do, and serves on.
func TestPromotionAtTheLimitOfOpenFiles(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	limited := func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `ulimit -n 64; exec "$0" "$@"`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
	}
	p := start(t, dir, limited, "serve", "a")
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	test.Must(t, err)
	made := 0
	for ; err == nil && made < 64; made++ {
		writeAt(t, f, 4096, pattern(byte(made), 4096))
		err = c.Run(context.Background(), "cow-promote", map[string]any{"disks": []string{"a"}, "tag": fmt.Sprintf("t%d", made)}, nil)
	}
	if err == nil {
		t.Fatal("64 layers fit into 64 descriptors")
	}
	wantAt(t, f, 4096, pattern(byte(made-1), 4096))
	writeAt(t, f, 8192, pattern(7, 512))
	f.Close()
	p.end(t)

	p = start(t, dir, limited, "serve", "a")
	if err := p.cmd.Wait(); err == nil || !strings.Contains(p.log.String(), "LimitNOFILE") {
		t.Errorf("serve under the limit: %v\n%s", err, p.log.String())
	}
	p = start(t, dir, nil, "serve", "a")
	wantAt(t, dial(t, filepath.Join(dir, "run", "a.sock")), 4096, pattern(byte(made-1), 4096))
	p.end(t)
}
