package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/daemon"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// descriptors returns the number of open descriptors of a process.
func (p *process) descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	test.Must(t, err)
	return len(entries)
}

// allow lets a running process open more further descriptors; negative: any number.
func (p *process) allow(t *testing.T, more int) {
	t.Helper()
	var limit unix.Rlimit
	test.Must(t, unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &limit))
	limit.Cur = limit.Max
	if more >= 0 {
		// RLIMIT_NOFILE limits the value of descriptors: this is the first free one that may not be
		// used.
		limit.Cur = 0
		for free := 0; ; limit.Cur++ {
			if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", p.cmd.Process.Pid,
				limit.Cur)); err == nil {
				continue
			}
			if free++; free > more {
				break
			}
		}
	}
	test.Must(t, unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil))
}

// A process runs out of file descriptors: a promotion fails completely and says what to do, new
// front-ends and clients wait or are disconnected, and the connected guest is not affected. When
// descriptors are free, everything works, and none has leaked.
func TestOutOfDescriptors(t *testing.T) {
	dir := storeWith(t, "1M", "a", "b")
	p := start(t, dir, nil, "serve", "a", "b")
	f := dial(t, filepath.Join(dir, "run", "a.sock"))
	ctl := dialRaw(t, filepath.Join(dir, "run", "a.ctl"))
	content := byte(0)
	healthy := func() {
		t.Helper()
		content++
		writeAt(t, f, 0, pattern(content, 8192))
		test.Check(t, f.Driver(0).Flush())
		wantAt(t, f, 0, pattern(content, 8192))
	}
	healthy()
	before := p.descriptors(t)

	failures := 0
	for more := 0; ; more++ {
		p.allow(t, more)
		files := listing(t, dir)
		err := ctl.run("cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: "t"})
		healthy()
		if err == nil {
			break
		}
		failures++
		if !strings.Contains(err.Error(), "too many open files") || !strings.Contains(err.Error(),
			"LimitNOFILE") {
			t.Errorf("promotion with %d descriptors: %v", more, err)
		}
		if now := listing(t, dir); !slices.Equal(now, files) {
			t.Errorf("promotion with %d descriptors has left %v", more, difference(now, files))
		}
		if more > 50 {
			t.Fatal(err)
		}
	}
	t.Logf("the promotion failed %d times for want of descriptors", failures)
	p.allow(t, -1)
	awaitDescriptors(t, p, before+2) // of a layer
	before += 2

	refused := 0
	for more := range 12 {
		p.allow(t, more)
		g, err := frontend.Dial(filepath.Join(dir, "run", "b.sock"),
			frontend.Options{Timeout: 300 * time.Millisecond})
		if err == nil {
			g.Close()
		} else {
			refused++
		}
		healthy()
		if err := ctl.run("nbd-server-start", map[string]string{"addr": "unix:" + filepath.Join(dir,
			"run", fmt.Sprint("nbd", more))}); err == nil {
			if err := ctl.run("cow-export-add", map[string]string{"name": "a@t"}); err == nil {
				healthy()
			} else if !strings.Contains(err.Error(), "too many open files") {
				t.Error(err)
			}
			test.Check(t, ctl.run("nbd-server-stop", nil))
		} else if !strings.Contains(err.Error(), "too many open files") {
			t.Error(err)
		}
		p.allow(t, -1)
		g = dial(t, filepath.Join(dir, "run", "b.sock"))
		writeAt(t, g, 0, pattern(1, 512))
		g.Close()
		awaitDescriptors(t, p, before)
		if t.Failed() {
			t.Fatalf("with %d descriptors more", more)
		}
	}
	if refused == 0 {
		t.Error("every front-end was served")
	}

	// A waiting front-end is served as soon as a descriptor is free.
	p.allow(t, 0)
	served := make(chan error, 1)
	go func() {
		g, err := frontend.Dial(filepath.Join(dir, "run", "b.sock"), frontend.Options{})
		if err == nil {
			err = g.Close()
		}
		served <- err
	}()
	time.Sleep(250 * time.Millisecond)
	healthy()
	p.allow(t, -1)
	test.Check(t, <-served, "a front-end that waited")
	f.Close()
	p.end(t)
	if log := p.log.String(); strings.Contains(log, "broke the protocol") || !strings.Contains(log,
		"raise its limit") {
		t.Errorf("a front-end was blamed for want of descriptors, or none was:\n%s", log)
	}
	if n := strings.Count(p.log.String(), "\n"); n > 150 {
		t.Errorf("%d lines of log", n)
	}
}

// A disk larger than the file system's limit for a file: the error names the limit, and nothing is
// left.
func TestLargerThanFileSystemAllows(t *testing.T) {
	dir := shortDir(t)
	probe := filepath.Join(dir, "probe")
	test.Must(t, os.WriteFile(probe, nil, 0o600))
	if err := os.Truncate(probe, 17<<40); !errors.Is(err, unix.EFBIG) {
		t.Skipf("this file system takes files of 17 TiB (%v): ext4 does not", err)
	}
	os.Remove(probe)
	expectFailure(t, dir, []string{"create", "a", "--size", "17T"}, "file system's limit", "16 TiB",
		"XFS")
	command(t, dir, "create", "a", "--size", "15T")
	if text := command(t, dir, "list"); strings.Count(text, "\n") != 2 {
		t.Errorf("the store has\n%s", text)
	}
}

func awaitDescriptors(t *testing.T, p *process, want int) {
	t.Helper()
	test.Eventually(t, fmt.Sprint(want, " descriptors"),
		func() bool { return p.descriptors(t) == want })
}

// A disk with more layers than the process may open: every command refuses with advice, and changes
// nothing.
func TestMoreLayersThanDescriptors(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	for i := range 20 {
		command(t, dir, "promote", "a", "--tag", fmt.Sprintf("t%d", i))
	}
	limited := func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `ulimit -n 32; exec "$0" "$@"`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
	}
	before := listing(t, dir)
	for _, args := range [][]string{
		{"serve", "a"}, {"promote", "a", "--tag", "u"}, {"rollback", "a@t10", "--yes",
			"--discard-tags"}, {"export", "a@t19", "--listen", "unix:" + filepath.Join(dir, "nbd")},
	} {
		p := start(t, dir, limited, args...)
		if code := p.outcome(t); code != exitFailure || !strings.Contains(p.log.String(),
			"open files") || !strings.Contains(p.log.String(), "LimitNOFILE") {
			t.Errorf("%v: exit code %d\n%s", args, code, p.log.String())
		}
		if now := listing(t, dir); !slices.Equal(now, before) {
			t.Errorf("%v has left %v", args, difference(now, before))
		}
	}
	// Commands that open no layers, or one at a time, work.
	for _, args := range [][]string{{"info", "a"}, {"tree"}, {"create", "b", "--from", "a@t19"},
		{"check"}} {
		p := start(t, dir, limited, args...)
		if code := p.outcome(t); code != exitOK {
			t.Errorf("%v: exit code %d\n%s", args, code, p.log.String())
		}
	}
	p := start(t, dir, nil, "serve", "a", "b")
	wantAt(t, dial(t, filepath.Join(dir, "run", "a.sock")), 0, pattern(0, 4096))
	p.end(t)
}
