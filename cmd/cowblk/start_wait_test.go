package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A command that waits for a lock of another process ends at SIGTERM and SIGINT: the lock of the
// store, of a disk, of the directory of its socket.
func TestSignalEndsWaitForALock(t *testing.T) {
	image := filepath.Join(shortDir(t), "image")
	test.Must(t, os.WriteFile(image, pattern(9, 64<<10), 0o600))
	for _, c := range []struct {
		lock string
		args string
	}{
		{"lock", "create c --size 1M"},
		{"lock", "create c --from a@t"},
		{"lock", "import " + image + " img"},
		{"lock", "promote a --tag x"},
		{"lock", "rollback a@t --yes"},
		{"lock", "rm a --yes"},
		{"lock", "check --repair"},
		{"disks/a/lock", "serve a"},
	} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(c.args+" "+sig.String(), func(t *testing.T) {
				dir := storeWith(t, "1M", "a")
				command(t, dir, "promote", "a", "--tag", "t")
				// A stale transaction, which a command that only opens a disk removes under the
				// store's lock.
				test.Must(t, os.MkdirAll(filepath.Join(dir, "tmp", "x"), 0o700))
				lock, err := os.Open(filepath.Join(dir, c.lock))
				test.Must(t, err)
				defer lock.Close()
				test.Must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
				p := start(t, dir, nil, strings.Fields(c.args)...)
				// It waits when it has the lock file open.
				test.Eventually(t, "it waits for the lock", func() bool {
					fds, _ := filepath.Glob("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/fd/*")
					for _, fd := range fds {
						if to, err := os.Readlink(fd); err == nil && to == filepath.Join(dir,
							c.lock) {
							return true
						}
					}
					return false
				})
				test.Must(t, p.cmd.Process.Signal(sig))
				if code, want := p.outcome(t), 128+int(sig); code != want {
					t.Errorf("exit code %d, expected %d\n%s", code, want, p.log.String())
				}
			})
		}
	}
}
