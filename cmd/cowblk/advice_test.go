package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

// On a file system without free inodes, the socket of an export there uses the inodes of the
// store's reserve.
func TestExportOntoAFullFileSystem(t *testing.T) {
	if !canMount(t) {
		return
	}
	for _, k := range fullKinds {
		if k.size > 0 && os.Getuid() != 0 || k.name == "btrfs" {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			m := k.mount(t)
			st := filepath.Join(m, "s")
			command(t, st, "create", "a", "--size", "1M")
			command(t, st, "promote", "a", "--tag", "t")
			k.exhaust(t, m)
			p, _ := startExport(t, st, 1, "a@t", "--listen", "unix:"+filepath.Join(m, "nbd"))
			p.end(t)
		})
	}
}

// If a lock cannot be examined, check does not report the disk as correct.
func TestCheckThatFailsDoesNotSayThatNothingIsWrong(t *testing.T) {
	dir := storeWith(t, "1M", "a")
	lock := filepath.Join(dir, "disks", "a", "lock")
	test.Must(t, os.Remove(lock))
	if err := os.Symlink("lock", lock); err != nil { // ELOOP, for root too
		t.Fatal(err)
	}
	var out bytes.Buffer
	p := start(t, dir, func(cmd *exec.Cmd) { cmd.Stdout = &out }, "check", "a", "--repair")
	if code := p.outcome(t); code != checkFailed || strings.Contains(out.String(),
		"nothing is wrong") || !strings.Contains(out.String(), "1 could not be checked") {
		t.Errorf("exit %d: %s", code, out.String())
	}
}

// The advice names a file of another user's store only if it may be read.
func TestServeOfAnotherUsersStore(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be another user")
	}
	dir := shortDir(t)
	st := filepath.Join(dir, "s")
	command(t, st, "create", "a", "--size", "1M")
	self, err := os.ReadFile(os.Args[0])
	test.Must(t, err)
	bin := filepath.Join(dir, "cowblk")
	test.Must(t, os.WriteFile(bin, self, 0o755))
	for _, args := range [][]string{{"755", dir}, {"-R", "go+rX", st}} {
		runTool(t, "chmod", args...)
	}
	cmd := exec.Command(bin, "--store", st, "serve", "a")
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "permission denied") ||
		!strings.Contains(string(out), "--read-only") {
		t.Errorf("%v: %s", err, out)
	}
}
