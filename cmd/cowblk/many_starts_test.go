package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// outcome waits for one of many starts and returns its exit code; -1: the test ended it.
func (p *process) outcome(t *testing.T) int {
	t.Helper()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Many processes start for one disk at once, through several names of its store. One serves it,
// without disturbance; the others name that process. After it is killed, the next process can serve
// the disk at once.
func TestManyStartsOfOneDisk(t *testing.T) {
	dir := shortDir(t)
	st := filepath.Join(dir, "st")
	command(t, st, "create", "a", "--size", "1M")
	names := []string{st, filepath.Join(dir, "link"), filepath.Join(dir, "bound"),
		dir + "//./st/../st"}
	test.Must(t, os.Symlink("st", names[1]))
	test.Must(t, os.Mkdir(names[2], 0o700))
	if err := unix.Mount(st, names[2], "", unix.MS_BIND, ""); err == nil {
		t.Cleanup(func() { unix.Unmount(names[2], 0) })
	} else if os.Geteuid() == 0 {
		t.Fatal(err)
	} else {
		names = append(names[:2], names[3]) // an ordinary user has no such names
	}
	for round := range 5 {
		var all []*process
		for i := range 8 {
			// Each has its own socket, so that the sockets do not decide.
			all = append(all, start(t, names[i%len(names)], nil, "serve", "a", "--socket-path",
				filepath.Join(dir, fmt.Sprintf("s%d", i))))
		}
		ended := make(chan int, len(all))
		codes := make([]int, len(all))
		for i, p := range all {
			go func() { codes[i] = p.outcome(t); ended <- i }()
		}
		for range len(all) - 1 {
			i := <-ended
			if codes[i] != exitInUse || !strings.Contains(all[i].log.String(), " stop a") {
				t.Errorf("round %d: start %d ended with exit code %d\n%s", round, i, codes[i],
					all[i].log.String())
			}
			all[i] = nil
		}
		for i, p := range all {
			if p == nil {
				continue
			}
			f := dial(t, filepath.Join(dir, fmt.Sprintf("s%d", i)))
			if round > 0 {
				wantAt(t, f, 0, pattern(byte(round), 4096))
			}
			writeAt(t, f, 0, pattern(byte(round+1), 4096))
			test.Check(t, f.Driver(0).Flush())
			test.Must(t, p.cmd.Process.Signal(syscall.SIGKILL))
			<-ended
			f.Abort()
		}
	}
	p := start(t, st, nil, "serve", "a")
	wantAt(t, dial(t, filepath.Join(st, "run", "a.sock")), 0, pattern(5, 4096))
	p.end(t)
}

// Two stores, or two processes without a store, that use the same files.
func TestTwoStoresOneLayer(t *testing.T) {
	one, two, dir := shortDir(t), shortDir(t), shortDir(t)
	for _, name := range []string{"map", "data"} {
		test.Must(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600))
	}
	test.Must(t, os.Symlink("data", filepath.Join(dir, "other-data")))
	test.Must(t, os.Symlink("map", filepath.Join(dir, "other-map")))
	base := filepath.Join(dir, "base")
	test.Must(t, os.WriteFile(base, make([]byte, 1<<20), 0o600))
	for st, prefix := range map[string]string{one: "", two: "other-"} {
		table := fmt.Sprintf("0 2048 cow %s 0 %s %s 0", base, filepath.Join(dir, prefix+"map"),
			filepath.Join(dir, prefix+"data"))
		command(t, st, "create", "a", "--table", table)
	}
	p := start(t, one, nil, "serve", "a")
	f := dial(t, filepath.Join(one, "run", "a.sock"))
	writeAt(t, f, 0, pattern(1, 4096))
	q := start(t, two, nil, "serve", "a")
	if code := q.outcome(t); code != exitInUse || !strings.Contains(q.log.String(), "map") {
		t.Errorf("the second store's process ended with exit code %d\n%s", code, q.log.String())
	}
	wantAt(t, f, 0, pattern(1, 4096))
	f.Close()
	p.end(t)

	raw := filepath.Join(dir, "raw")
	test.Must(t, os.WriteFile(raw, make([]byte, 1<<20), 0o600))
	p = start(t, one, nil, "serve", "--blk-file", raw, "--socket-path", filepath.Join(dir, "p"))
	f = dial(t, filepath.Join(dir, "p"))
	q = start(t, one, nil, "serve", "--blk-file", raw, "--socket-path", filepath.Join(dir, "q"))
	if code := q.outcome(t); code == 0 || !strings.Contains(q.log.String(), raw) {
		t.Errorf("the second process with the raw file ended with exit code %d\n%s", code,
			q.log.String())
	}
	f.Close()
	p.end(t)

	// A raw file that a served disk lies on, in both orders: by the locks, and by one's own store
	// also if nothing serves the disk.
	nowhere := filepath.Join(dir, "nowhere")
	for _, under := range []string{base, filepath.Join(dir, "data"), filepath.Join(dir, "map")} {
		p = start(t, one, nil, "serve", "a")
		f = dial(t, filepath.Join(one, "run", "a.sock"))
		q = start(t, one, nil, "serve", "--blk-file", under, "--format", "raw", "--socket-path",
			filepath.Join(dir, "q"))
		if code := q.outcome(t); code != exitInUse || !strings.Contains(q.log.String(), under) {
			t.Errorf("%s raw beside a disk that lies on it: expected exit code %d, found %d\n%s",
				under, exitInUse, code, q.log.String())
		}
		wantAt(t, f, 0, pattern(1, 4096))
		f.Close()
		q = start(t, nowhere, nil, "serve", "--blk-file", under, "--format", "raw", "--socket-path",
			filepath.Join(dir, "q"))
		if code := q.outcome(t); code != exitInUse || !strings.Contains(q.log.String(), under) {
			t.Errorf("%s raw, by another store: expected exit code %d, found %d\n%s", under,
				exitInUse, code, q.log.String())
		}
		p.end(t)
		q = start(t, one, nil, "serve", "--blk-file", under, "--format", "raw", "--socket-path",
			filepath.Join(dir, "q"))
		if code := q.outcome(t); code != exitInUse || !strings.Contains(q.log.String(),
			`disk "a"`) {
			t.Errorf("%s raw, of a disk that is not served: expected exit code %d, found %d\n%s",
				under, exitInUse, code, q.log.String())
		}
		p = start(t, nowhere, nil, "serve", "--blk-file", under, "--format", "raw", "--socket-path",
			filepath.Join(dir, "p"))
		f = dial(t, filepath.Join(dir, "p"))
		q = start(t, one, nil, "serve", "a")
		if code := q.outcome(t); code != exitInUse || !strings.Contains(q.log.String(), under) {
			t.Errorf("a disk beside %s, which is served raw: expected exit code %d, found %d\n%s",
				under, exitInUse, code, q.log.String())
		}
		f.Close()
		p.end(t)
	}
	own := filepath.Join(one, "images", "golden", "data")
	image := filepath.Join(dir, "image.raw")
	test.Must(t, os.WriteFile(image, pattern(2, 1<<20), 0o600))
	command(t, one, "import", image, "golden")
	link := filepath.Join(dir, "link")
	test.Must(t, os.Link(own, link))
	for _, path := range []string{own, link, filepath.Join(one, "disks", "a", "lock")} {
		q = start(t, one, nil, "serve", "--blk-file", path, "--format", "raw", "--socket-path",
			filepath.Join(dir, "q"))
		if code := q.outcome(t); code != exitRefused {
			t.Errorf("%s of a store raw: expected exit code %d, found %d\n%s", path, exitRefused,
				code, q.log.String())
		}
	}
}
