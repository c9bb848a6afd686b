package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/internal/test"
)

// fullKind is a kind of file system that can be filled to the last byte or the last inode.
type fullKind struct {
	name   string
	size   int64  // bytes of the image file; 0: tmpfs
	mkfs   string // the command that formats the image
	tmpfs  string // mount options
	inodes bool   // inodes run out, not bytes
}

var fullKinds = []fullKind{
	{name: "tmpfs", tmpfs: "size=8m"},
	{name: "tmpfs without inodes", tmpfs: "size=64m,nr_inodes=150", inodes: true},
	{name: "ext4", size: 64 << 20, mkfs: "mkfs.ext4 -q -m 0"},
	{name: "ext4 without inodes", size: 64 << 20, mkfs: "mkfs.ext4 -q -m 0 -N 160", inodes: true},
	{name: "xfs", size: 320 << 20, mkfs: "mkfs.xfs -q"},
	{name: "btrfs", size: 256 << 20, mkfs: "mkfs.btrfs -q"},
}

// mount mounts a new file system of the kind. Without root, which loop devices need, only tmpfs is
// possible.
func (k *fullKind) mount(t *testing.T) string {
	t.Helper()
	dir := shortDir(t)
	at := filepath.Join(dir, "m")
	test.Must(t, os.Mkdir(at, 0o755))
	args := []string{"-t", "tmpfs", "-o", k.tmpfs, "tmpfs", at}
	if k.size > 0 {
		image := filepath.Join(dir, "image")
		test.Must(t, os.WriteFile(image, nil, 0o600))
		test.Must(t, os.Truncate(image, k.size))
		mkfs := append(strings.Fields(k.mkfs), image)
		runTool(t, mkfs[0], mkfs[1:]...)
		args = []string{"-o", "loop", image, at}
	}
	runTool(t, "mount", args...)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return at
}

// exhaust leaves nothing free on the file system of dir. It may be called again.
func (k *fullKind) exhaust(t *testing.T, dir string) {
	t.Helper()
	dir = filepath.Join(dir, "ballast")
	if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	big, err := os.OpenFile(filepath.Join(dir, "big"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for size := 1 << 20; !k.inodes && size >= 512; size /= 2 {
		for err = nil; err == nil; {
			_, err = big.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if err := big.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	big.Close()
	for {
		f, err := os.CreateTemp(dir, "")
		if err == nil {
			_, err = f.Write([]byte{1})
			f.Close()
		}
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		test.Must(t, err)
	}
}

// infoOf returns the JSON output of "cowblk info".
func infoOf(t *testing.T, dir, disk string) (info struct {
	Socket  string
	Serving *struct {
		PID     int
		Control string
	}
}) {
	t.Helper()
	test.Must(t, json.Unmarshal([]byte(command(t, dir, "info", disk, "--json")), &info))
	return info
}

// On a file system without a free byte or inode, commands that read, serve, stop or free space work
// repeatedly, and a served guest continues. A promotion fails with the reason.
func TestFullStore(t *testing.T) {
	if !canMount(t) {
		return
	}
	for _, k := range fullKinds {
		for _, reserve := range []bool{true, false} {
			if k.size > 0 && os.Getuid() != 0 {
				continue // see canMount: tmpfs only
			}
			if k.name == "btrfs" && !reserve {
				continue // btrfs writes a head's header to a new place, for which there is no space
			}
			t.Run(fmt.Sprintf("%s/reserve=%v", k.name, reserve),
				func(t *testing.T) { k.test(t, reserve) })
		}
	}
}

func (k *fullKind) test(t *testing.T, reserve bool) {
	m := k.mount(t)
	st := filepath.Join(m, "s")
	image := filepath.Join(shortDir(t), "image")
	test.Must(t, os.WriteFile(image, pattern(9, 64<<10), 0o600))
	command(t, st, "import", image, "img")
	for _, d := range []string{"served", "killed", "stopped", "fresh"} {
		command(t, st, "create", d, "--from", "img", "--size", "1M")
	}
	command(t, st, "promote", "stopped", "--tag", "t")
	served, killed := start(t, st, nil, "serve", "served"), start(t, st, nil, "serve", "killed")
	guest := dial(t, infoOf(t, st, "served").Socket)
	other := dial(t, infoOf(t, st, "killed").Socket)
	writeAt(t, guest, 0, pattern(1, 64<<10))
	writeAt(t, other, 0, pattern(2, 64<<10))
	for _, f := range []interface{ Flush() error }{guest.Driver(0), other.Driver(0)} {
		test.Must(t, f.Flush())
	}
	if !reserve { // as in a store of an earlier version
		test.Must(t, os.RemoveAll(filepath.Join(st, "reserve")))
	}
	reads := func() {
		t.Helper()
		k.exhaust(t, m)
		for _, args := range [][]string{{"list"}, {"tree"}, {"info", "served"}, {"info", "stopped"},
			{"check"}, {"check", "--full"}, {"check", "stopped"}} {
			command(t, st, args...)
		}
		wantAt(t, guest, 0, pattern(1, 64<<10))
		for _, what := range []string{"stopped@t", "stopped"} {
			at := filepath.Join(filepath.Dir(image), "nbd")
			p, _ := startExport(t, st, 1, what, "--listen", "unix:"+at)
			p.end(t)
		}
	}
	reads()
	if err := runCommand(st, "promote", "served", "--tag", "x"); err != nil &&
		!strings.Contains(err.Error(), "no space left") {
		t.Error(err)
	}
	var ended chan struct{} // closed when the killed process has ended
	for range 3 {
		k.exhaust(t, m)
		other.Close()
		test.Must(t, killed.cmd.Process.Signal(syscall.SIGKILL))
		if ended != nil {
			<-ended
		} else {
			killed.cmd.Wait()
		}
		killed = start(t, st, nil, "serve", "killed")
		ended = make(chan struct{})
		go func(p *process, ended chan struct{}) { p.cmd.Wait(); close(ended) }(killed, ended)
		test.Eventually(t, "the killed disk is served again, and others know where", func() bool {
			select {
			case <-ended:
				t.Fatalf("%v\n%s", killed.cmd.ProcessState, killed.log.String())
			default:
			}
			i := infoOf(t, st, "killed")
			return i.Serving != nil && i.Serving.PID == killed.cmd.Process.Pid &&
				i.Serving.Control != ""
		})
		i := infoOf(t, st, "killed")
		other = dial(t, i.Socket)
		wantAt(t, other, 0, pattern(2, 64<<10))
		test.Check(t, test.Err(control.Dial(i.Serving.Control, 5*time.Second)))
	}
	reads()
	k.exhaust(t, m)
	fresh := start(t, st, nil, "serve", "fresh")
	test.Eventually(t, "a disk is served for the first time",
		func() bool {
			i := infoOf(t, st, "fresh")
			return i.Serving != nil && i.Serving.Control != ""
		})
	f := dial(t, infoOf(t, st, "fresh").Socket)
	wantAt(t, f, 0, pattern(9, 64<<10))
	f.Close()
	fresh.end(t)
	if reserve {
		k.exhaust(t, m)
		command(t, st, "rollback", "stopped@t", "--yes")
	}
	k.exhaust(t, m)
	command(t, st, "rm", "fresh", "--yes")
	content := byte(1)
	if k.name != "btrfs" { // btrfs writes to a new place, for which there is no space
		content = 3
		writeAt(t, guest, 0, pattern(content, 64<<10))
		test.Check(t, guest.Driver(0).Flush())
	}
	wantAt(t, guest, 0, pattern(content, 64<<10))
	guest.Close()
	other.Close()
	served.end(t)
	test.Must(t, killed.cmd.Process.Signal(syscall.SIGTERM))
	if <-ended; !killed.cmd.ProcessState.Success() {
		t.Errorf("%v\n%s", killed.cmd.ProcessState, killed.log.String())
	}
	command(t, st, "check")
	// The reserve is restored when there is space.
	test.Must(t, os.RemoveAll(filepath.Join(m, "ballast")))
	command(t, st, "create", "new", "--from", "stopped@t")
	if n, err := os.ReadDir(filepath.Join(st, "reserve")); err != nil || len(n) == 0 {
		t.Errorf("the reserve has %d files: %v", len(n), err)
	}
}
