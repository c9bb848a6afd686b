package main

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/cow/store"
	"cowblk/internal/test"
)

// runTool runs an installed program, such as nbdcopy.
func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// checkCopy compares the content that an NBD client reads from uri with want.
func checkCopy(t *testing.T, uri string, want []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "copy")
	runTool(t, "nbdcopy", uri, file)
	if got, err := os.ReadFile(file); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s: %d bytes differ from the %d expected: %v", uri, len(got), len(want), err)
	}
}

// startExport starts cowblk export and returns its n URIs.
func startExport(t *testing.T, dir string, n int, args ...string) (p *process, uris []string) {
	t.Helper()
	var out io.ReadCloser
	p = start(t, dir, func(cmd *exec.Cmd) {
		var err error
		if out, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
	}, append([]string{"export"}, args...)...)
	lines := bufio.NewScanner(out)
	for len(uris) < n && lines.Scan() {
		uris = append(uris, lines.Text())
	}
	if len(uris) < n {
		p.cmd.Wait()
		t.Fatalf("%d URIs: %q\n%s", len(uris), uris, p.log.String())
	}
	return p, uris
}

// While the guest writes, each tag reads as it was when it was made, through UNIX sockets and TCP.
func TestExportOfServedDisk(t *testing.T) {
	const size = 8<<20 + 512
	dir := storeWith(t, "8389120", "vm1")
	p, f := startServing(t, dir, "vm1")
	r := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, size)
	scribble := func() {
		for range 40 {
			b := pattern(byte(1+r.IntN(255)), 512*(1+r.IntN(64)))
			off := 512 * r.Int64N((size-int64(len(b)))/512+1)
			writeAt(t, f, off, b)
			copy(content[off:], b)
		}
	}
	tags := map[string][]byte{}
	for _, tag := range []string{"one", "two"} {
		scribble()
		tags["vm1@"+tag] = slices.Clone(content)
		command(t, dir, "promote", "vm1", "--tag", tag)
	}
	scribble()
	q, uris := startExport(t, dir, 4, "vm1@two", "vm1@one", "--listen", "unix:"+filepath.Join(dir,
		"nbd & more"), "--listen", "tcp:0")
	for _, uri := range uris {
		u, err := url.Parse(uri)
		test.Must(t, err)
		checkCopy(t, uri, tags[strings.TrimPrefix(u.Path, "/")])
		scribble()
	}
	raw := filepath.Join(dir, "raw")
	runTool(t, "qemu-img", "convert", "-O", "raw", uris[0], raw)
	runTool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uris[1], raw)
	q.end(t)
	if left, _ := filepath.Glob(filepath.Join(dir, "nbd*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	wantAt(t, f, 0, content)
	p.end(t)
	q, uris = startExport(t, dir, 1, "vm1", "--listen", "tcp:0")
	checkCopy(t, uris[0], content)
	q.end(t)
}

// The same through commands to the process that serves the disk.
func TestExportByDaemon(t *testing.T) {
	dir := storeWith(t, "1M", "vm1")
	p, f := startServing(t, dir, "vm1")
	want := pattern(7, 1<<20)
	writeAt(t, f, 0, want)
	command(t, dir, "promote", "vm1", "--tag", "t")
	writeAt(t, f, 4096, pattern(8, 512))

	s, err := store.Open(dir, store.Options{Getenv: func(string) string { return "" }})
	test.Must(t, err)
	serving, ok := s.Serving("vm1")
	if !ok {
		t.Fatal("vm1 is not served")
	}
	c, err := control.Dial(serving.Control, 20*time.Second)
	test.Must(t, err)
	ask := func(command string, args, out any) {
		t.Helper()
		test.Must(t, c.Run(t.Context(), command, args, out), command)
	}
	socket := filepath.Join(dir, "run", "nbd") // a confined process can make sockets there
	ask("nbd-server-start", map[string]string{"addr": "unix:" + socket}, nil)
	ask("cow-export-add", map[string]string{"name": "vm1@t"}, nil)
	if err := c.Run(t.Context(), "cow-export-add", map[string]string{"name": "vm1"},
		nil); err == nil || !strings.Contains(err.Error(), "vm1@t") {
		t.Errorf("export of the served disk itself: %v", err)
	}
	var info daemon.NBDInfo
	ask("query-cow-exports", nil, &info)
	if len(info.Exports) != 1 || len(info.Exports[0].URIs) != 1 || info.Exports[0].Size != 1<<20 {
		t.Fatalf("exports: %+v", info)
	}
	checkCopy(t, info.Exports[0].URIs[0], want)
	p.end(t) // while the NBD server runs
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the NBD socket is left")
	}
}
