package main

import (
	"bytes"
	"context"
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

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/internal/test"
)

// canMount reports whether this process may mount. For an ordinary user it runs the test in a user
// namespace.
func canMount(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", os.Args[0],
		"-test.run=^"+t.Name()+"$", "-test.v")
	if out, err := cmd.CombinedOutput(); err != nil ||
		!bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return false
}

// smallFS mounts a tmpfs of size bytes and returns its directory.
func smallFS(t *testing.T, size int) string {
	t.Helper()
	dir := shortDir(t)
	test.Must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill fills the file system of dir until free bytes are left; negative: it removes the filler.
func fill(t *testing.T, dir string, free int64) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	test.Must(t, os.WriteFile(ballast, nil, 0o600))
	var st unix.Statfs_t
	test.Must(t, unix.Statfs(dir, &st))
	if n := int64(st.Bavail)*st.Bsize - free; free >= 0 && n > 0 {
		test.Must(t, os.WriteFile(ballast, make([]byte, n), 0o600))
	}
}

// runCommand runs cowblk in this process.
func runCommand(dir string, args ...string) error {
	if code, text := runOutcome(dir, args...); code != exitOK {
		return errors.New(text)
	}
	return nil
}

// On a full or almost full file system, commands that create fail completely, say why, and leave
// nothing. The guest reads, overwrites and flushes meanwhile. With enough space all commands
// succeed.
func TestStoreOnAFullFileSystem(t *testing.T) {
	if !canMount(t) {
		return
	}
	image := filepath.Join(shortDir(t), "image")
	test.Must(t, os.WriteFile(image, pattern(9, 64<<10), 0o600))
	for _, c := range []struct {
		name string
		do   func(st string, ctl *control.Client) error
	}{
		{"promote one", promoteCommand("a")},
		{"promote two", promoteCommand("a", "b")},
		{"promote stopped", func(st string, _ *control.Client) error {
			return runCommand(st, "promote", "stopped", "--tag", "t")
		}},
		{"create", func(st string, _ *control.Client) error {
			return runCommand(st, "create", "c", "--size", "1M")
		}},
		{"clone", func(st string, _ *control.Client) error {
			return runCommand(st, "create", "c", "--from", "stopped@t0")
		}},
		{"import", func(st string, _ *control.Client) error {
			return runCommand(st, "import", image, "i")
		}},
		{"rollback", func(st string, _ *control.Client) error {
			return runCommand(st, "rollback", "stopped@t0", "--yes")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := smallFS(t, 2<<20)
			st := filepath.Join(dir, "st")
			for _, name := range []string{"a", "b", "stopped"} {
				command(t, st, "create", name, "--size", "64M")
			}
			command(t, st, "promote", "stopped", "--tag", "t0")
			p := start(t, st, nil, "serve", "a", "b")
			f := dial(t, filepath.Join(st, "run", "a.sock"))
			ctl, err := control.Dial(filepath.Join(st, "run", "a.ctl"), 5*time.Second)
			test.Must(t, err)
			content := byte(0)
			overwrite := func() {
				t.Helper()
				content++
				writeAt(t, f, 0, pattern(content, 64<<10))
				test.Check(t, f.Driver(0).Flush(), "flush")
				wantAt(t, f, 0, pattern(content, 64<<10))
			}
			overwrite()
			failures := 0
			for pages := int64(0); ; pages++ {
				fill(t, dir, pages*4096)
				before := listing(t, st)
				if err = c.do(st, ctl); err == nil {
					break
				}
				failures++
				if !strings.Contains(err.Error(), "no space left") || strings.Contains(err.Error(),
					"put back") {
					t.Errorf("with %d pages free: %v", pages, err)
				}
				if now := listing(t, st); !slices.Equal(now, before) {
					t.Errorf("with %d pages free it has left something: %v\n%v", pages, err,
						strings.Join(difference(now, before), "\n"))
				}
				overwrite()
				if t.Failed() || pages > 100 {
					t.Fatalf("%d pages", pages)
				}
			}
			t.Logf("failed %d times for want of room", failures)
			// A rollback uses the store's reserve.
			if (failures == 0) != (c.name == "rollback") {
				t.Error("there was room, or there was none")
			}
			fill(t, dir, -1)
			overwrite()
			f.Close()
			p.end(t)
			command(t, st, "check")
		})
	}
}

func promoteCommand(disks ...string) func(string, *control.Client) error {
	return func(_ string, ctl *control.Client) error {
		return ctl.Run(context.Background(), "cow-promote", daemon.PromoteArgs{Disks: disks,
			Tag: "t"}, nil)
	}
}

// difference returns the strings that are in one list only.
func difference(now, before []string) (d []string) {
	for _, n := range now {
		if !slices.Contains(before, n) {
			d = append(d, "+ "+n)
		}
	}
	for _, n := range before {
		if !slices.Contains(now, n) {
			d = append(d, "- "+n)
		}
	}
	return d
}
