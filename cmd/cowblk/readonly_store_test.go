package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// A read-only store can be listed, checked and exported, and its disks are served without writes,
// whether its file system was remounted or is mounted read-only elsewhere while the store is in
// use. Commands that would change it fail with the reason.
func TestReadOnlyStore(t *testing.T) {
	if !canMount(t) {
		return
	}
	kinds := []fullKind{{name: "tmpfs", tmpfs: "size=16m"}, {name: "ext4", size: 64 << 20,
		mkfs: "mkfs.ext4 -q"}}
	for _, k := range kinds {
		for _, bind := range []bool{false, true} {
			if k.size > 0 && os.Getuid() != 0 {
				continue // see canMount
			}
			name := k.name + " remounted"
			if bind {
				name = k.name + " bound"
			}
			t.Run(name, func(t *testing.T) { readOnlyStore(t, &k, bind) })
		}
	}
}

func readOnlyStore(t *testing.T, k *fullKind, bind bool) {
	m := k.mount(t)
	writable := filepath.Join(m, "s")
	for _, d := range []string{"closed", "killed", "served"} {
		command(t, writable, "create", d, "--size", "1M")
		p := start(t, writable, nil, "serve", d)
		f := dial(t, filepath.Join(writable, "run", d+".sock"))
		writeAt(t, f, 0, pattern(1, 64<<10))
		if d == "closed" {
			f.Close()
			p.end(t)
			command(t, writable, "promote", d, "--tag", "t")
			continue
		}
		if d == "killed" || !bind {
			f.Close()
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	}
	st := writable
	if bind {
		other := t.TempDir()
		test.Must(t, unix.Mount(m, other, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(other, unix.MNT_DETACH) })
		test.Must(t, unix.Mount("", other, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		st = filepath.Join(other, "s")
	} else if err := unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, st)
	list := command(t, st, "list")
	if strings.Contains(list, "damaged") || bind != strings.Contains(list, "served by process") {
		t.Error(list)
	}
	for _, args := range [][]string{{"tree"}, {"info", "closed"}, {"info", "killed"}, {"check"},
		{"check", "--full"}, {"check", "closed"}} {
		command(t, st, args...)
	}
	at := filepath.Join(shortDir(t), "nbd")
	for _, what := range []string{"closed@t", "closed", "killed"} {
		p, uris := startExport(t, st, 1, what, "--listen", "unix:"+at)
		checkCopy(t, uris[0], append(pattern(1, 64<<10), make([]byte, 1<<20-64<<10)...))
		p.end(t)
	}
	for _, d := range []string{"closed", "killed"} {
		p := start(t, st, nil, "serve", d, "--read-only")
		test.Eventually(t, "others know where "+d+" is served",
			func() bool {
				i := infoOf(t, st, d)
				return i.Serving != nil && i.Serving.Control != ""
			})
		f := dial(t, infoOf(t, st, d).Socket)
		if f.Offered()&frontend.FeatureRO == 0 {
			t.Errorf("%s: VIRTIO_BLK_F_RO is not offered", d)
		}
		wantAt(t, f, 0, pattern(1, 64<<10))
		f.Close()
		p.end(t)
	}
	for _, args := range [][]string{
		{"create", "c", "--size", "1M"}, {"rm", "closed", "--yes"}, {"rollback", "closed@t",
			"--yes"}, {"promote", "closed", "--tag", "x"}, {"serve", "closed"},
	} {
		if err := runCommand(st, args...); err == nil || !strings.Contains(err.Error(),
			"read-only file system") {
			t.Errorf("cowblk %v: %v", args, err)
		}
	}
	if now := snapshotOf(t, st); now != before {
		t.Errorf("the store was\n%s\nand is\n%s", before, now)
	}
}

// snapshotOf returns names, sizes and digests of a store's files except locks, which record the
// process that has a disk open.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	return runTool(t, "sh", "-c",
		`cd "$0" && find . -type f ! -name lock -print0 | sort -z | xargs -0 sha256sum`, dir)
}

// Unreadable files are not reported as damaged or stopped, and a command that could not read them
// fails.
func TestUnreadableStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs another user's store: run as root")
	}
	dir, bin := shortDir(t), shortDir(t)
	st := filepath.Join(dir, "s")
	command(t, st, "create", "a", "--size", "1M")
	as := asOrdinaryUser(t, bin)
	for _, d := range []string{dir, bin} {
		test.Must(t, os.Chmod(d, 0o755))
	}
	p := start(t, st, nil, "serve", "a")
	dial(t, filepath.Join(st, "run", "a.sock")).Close()
	try := func(args ...string) (string, int) {
		var out strings.Builder
		q := start(t, st, func(c *exec.Cmd) { as(c); c.Stdout = &out }, args...)
		code := q.outcome(t)
		return out.String() + q.log.String(), code
	}
	everything := func(why string) {
		t.Helper()
		for _, args := range [][]string{{"list"}, {"tree"}, {"info", "a"}, {"check"}} {
			out, code := try(args...)
			if code == exitOK || !strings.Contains(out, "permission denied") {
				t.Errorf("%s: cowblk %v: exit code %d\n%s", why, args, code, out)
			}
			for _, wrong := range []string{"damaged", "DAMAGED", "stopped"} {
				if strings.Contains(out, wrong) {
					t.Errorf("%s: cowblk %v says %q\n%s", why, args, wrong, out)
				}
			}
		}
	}
	everything("nothing may be read")
	// As in a store of an earlier version, except for the file under test.
	if out, err := exec.Command("chmod", "-R", "go+rX", st).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, name := range []string{"disks/a/lock", "disks/a/disk.json",
		manifestOf(t, st, "a").Head().Map} {
		path := filepath.Join(st, name)
		test.Must(t, os.Chmod(path, 0o600))
		everything(name)
		test.Must(t, os.Chmod(path, 0o644))
	}
	if out, code := try("list"); code != exitOK || !strings.Contains(out, "served by process") {
		t.Errorf("cowblk list: exit code %d\n%s", code, out)
	}
	p.end(t)
}
