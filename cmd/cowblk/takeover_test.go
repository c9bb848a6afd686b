package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cowblk/backend/daemon"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// waitExit waits for a process that ends by itself with exit code 0.
func (p *process) waitExit(t testing.TB) {
	t.Helper()
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("cowblk: %v\n%s", err, p.log.String())
	}
}

// A front-end under load sees no error, refused connection or lost write in takeovers, although
// nothing is flushed in between. The longest time without a completion is logged.
func TestTakeoverUnderLoad(t *testing.T) {
	for name, create := range map[string]func(t *testing.T, dir string){
		"1 GB": func(t *testing.T, dir string) {
			command(t, dir, "create", "a", "--size", "1G")
		},
		"50 GB, 8 layers": deepDisk,
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			create(t, dir)
			takeOverUnderLoad(t, dir)
		})
	}
}

func takeOverUnderLoad(t *testing.T, dir string) {
	p := start(t, dir, nil, "serve", "a")
	l := newLoad(t, filepath.Join(dir, "run", "a.sock"), 16<<10)
	l.waitRequests(2000)
	for i := range 3 {
		l.waitRequests(2000)
		q := start(t, dir, nil, "serve", "a", "--takeover")
		p.waitExit(t)
		l.waitRequests(2000)
		if n := l.reconnects.Load(); n != int64(i+1) {
			t.Errorf("%d reconnections after %d takeovers", n, i+1)
		}
		p = q
	}
	l.finish()
	t.Logf("%d requests; nothing completed for %v at the takeovers, and for %v at most in between",
		l.done.Load(), l.gaps, l.gap)
	if l.refused > 0 {
		t.Errorf("%d connections were refused", l.refused)
	}
	p.end(t)
	if !strings.Contains(command(t, dir, "list"), "stopped") {
		t.Error("the disk is still in use")
	}
}

// deepDisk makes a disk of 50 GB with eight layers, each with blocks all over the disk.
func deepDisk(t *testing.T, dir string) {
	t.Helper()
	command(t, dir, "create", "a", "--size", "50G")
	p, f := startServing(t, dir, "a")
	ranges := make([]frontend.Range, 64)
	for layer := range 8 {
		for i := range 400 {
			for j := range ranges {
				// Scattered as the files of a guest, but not in the first GB, where the load
				// writes.
				block := uint64(1)<<18 +
					(uint64(layer)*7919+uint64(i*len(ranges)+j)*499979)%(12<<20)
				ranges[j] = frontend.Range{Off: int64(block) * 4096, Len: 4096, Unmap: true}
			}
			test.Must(t, f.Driver(0).WriteZeroes(ranges...))
		}
		if layer < 7 {
			command(t, dir, "promote", "a", "--tag", fmt.Sprint("t", layer))
		}
	}
	f.Close()
	p.end(t)
}

// At SIGTERM requests in flight complete and the disk is closed in order. A front-end that
// reconnects to the next process has seen no error, and finds all its writes.
func TestRestartUnderLoad(t *testing.T) {
	dir := storeWith(t, "1G", "a")
	p := start(t, dir, nil, "serve", "a")
	l := newLoad(t, filepath.Join(dir, "run", "a.sock"), 16<<10)
	for range 3 {
		l.waitRequests(3000)
		p.end(t)
		p = start(t, dir, nil, "serve", "a")
	}
	l.waitRequests(1000)
	l.finish()
	t.Logf("%d requests; nothing completed for %v at the restarts", l.done.Load(), l.gaps)
	p.end(t)
}

// A takeover includes the NBD server: its sockets, which exist all the time, and its exports.
func TestTakeoverOfNBDServer(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	p, f := startServing(t, dir, "a")
	writeAt(t, f, 0, pattern(7, 4096))
	f.Close()
	command(t, dir, "promote", "a", "--tag", "one")
	c, _ := dialControl(t, dir, "a")
	for _, addr := range []string{"unix:" + filepath.Join(dir, "run", "nbd"), "tcp:0"} {
		test.Must(t, c.Run(t.Context(), "nbd-server-start", map[string]string{"addr": addr}, nil))
	}
	test.Must(t, c.Run(t.Context(), "cow-export-add", map[string]string{"name": "a@one"}, nil))
	query := func() (info daemon.NBDInfo) {
		t.Helper()
		test.Must(t, c.Run(t.Context(), "query-cow-exports", nil, &info))
		slices.Sort(info.Addresses)
		for i := range info.Exports {
			slices.Sort(info.Exports[i].URIs)
		}
		return info
	}
	before := query()
	q := start(t, dir, nil, "serve", "a", "--takeover")
	p.waitExit(t)
	test.Eventually(t, fmt.Sprintf("%+v", before),
		func() bool { return reflect.DeepEqual(before, query()) })
	conn, err := net.Dial("unix", filepath.Join(dir, "run", "nbd"))
	test.Must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	var magic [8]byte
	if _, err := io.ReadFull(conn, magic[:]); err != nil || string(magic[:]) != "NBDMAGIC" {
		t.Errorf("%q, %v", magic[:], err)
	}
	q.end(t)
	test.ErrorIs(t, test.Err(os.Lstat(filepath.Join(dir, "run", "nbd"))), os.ErrNotExist,
		"the socket is left")
}
