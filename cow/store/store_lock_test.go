package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

const lockPatience = 30 * time.Second

// waiting returns the number of waits for an exclusive lock of the file path.
func waiting(t *testing.T, path string) (n int) {
	t.Helper()
	var st unix.Stat_t
	test.Must(t, unix.Stat(path, &st))
	locks := readFile(t, "/proc/locks")
	for line := range bytes.Lines(locks) {
		if bytes.Contains(line, []byte("->")) && bytes.Contains(line, fmt.Appendf(nil, ":%d ",
			st.Ino)) {
			n++
		}
	}
	return n
}

// foreignLock takes the exclusive lock of a file on a descriptor that no Store knows.
func foreignLock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	test.Must(t, err)
	test.Must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	t.Cleanup(func() { f.Close() })
	return func() { f.Close() }
}

// The store's lock is granted in the order of the requests.
func TestStoreLockInOrder(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	unlock := foreignLock(t, s.path(lockFile))
	const n = 12
	order, errs := make(chan int, n), make(chan error, n)
	for i := range n {
		// Each Store counts as another process for the lock.
		other := openStore(t, s.Dir())
		go func() {
			errs <- other.locked(ctx, func() error { order <- i; return nil })
		}()
		test.Eventually(t, "one more waits",
			func() bool { return waiting(t, s.path(lockFile)) == i+1 })
	}
	unlock()
	for range n {
		test.Must(t, <-errs)
	}
	for i := range n {
		if got := <-order; got != i {
			t.Errorf("%d has got the lock as number %d", got, i)
		}
	}
}

// A wait for the store's lock ends with its context, and with the time limit, and names the process
// that holds the lock. Abandoned waits do not accumulate, and the lock is free after its holder.
func TestStoreLockWaitEnds(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	s.lockTimeout = lockPatience
	unlock := foreignLock(t, s.path(lockFile))
	goroutines := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error)
		go func() {
			done <- s.locked(ctx, func() error { return errors.New("the lock was had") })
		}()
		test.Eventually(t, "it waits", func() bool { return waiting(t, s.path(lockFile)) > 0 })
		cancel()
		test.ErrorIs(t, <-done, context.Canceled, "error")
	}
	if n := runtime.NumGoroutine(); n > goroutines+2 {
		t.Errorf("%d goroutines after 20 waits, %d before", n, goroutines)
	}
	s.lockTimeout = 20 * time.Millisecond
	err := s.locked(ctx, func() error { return errors.New("the lock was had") })
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d",
		os.Getpid())) {
		t.Errorf("%v, expected %v and this process", err, ErrBusy)
	}
	s.lockTimeout = lockPatience
	unlock()
	if err := openStore(t, s.Dir()).locked(ctx, func() error { return nil }); err != nil {
		t.Error(err)
	}
	if err := s.locked(ctx, func() error { return nil }); err != nil {
		t.Error(err)
	}
}

// The process that has a disk open is the one that holds its lock, not one that once wrote its
// number there.
func TestHolderIsNotWhoOnceWroteThere(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	path := s.path(disksDir, "vm1", lockFile)
	const dead = 1 << 29 // no process has this number
	write(t, path, fmt.Appendf(nil,
		`{"pid":%d,"control":"/run/cowblk/vm1.ctl","socket":"/run/cowblk/vm1.sock"}`, dead))
	cmd := exec.Command("flock", path, "cat")
	t.Run("shared", func(t *testing.T) {
		f, err := os.Open(path)
		test.Must(t, err)
		defer f.Close()
		test.Must(t, unix.Flock(int(f.Fd()), unix.LOCK_SH))
		_, err = s.LockDisk("vm1")
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d",
			os.Getpid())) || strings.Contains(err.Error(), fmt.Sprint(dead)) {
			t.Errorf("%v, expected this process", err)
		}
	})
	stdin, err := cmd.StdinPipe()
	test.Must(t, err)
	test.Must(t, cmd.Start())
	defer func() { stdin.Close(); cmd.Wait() }()
	test.Eventually(t, "another process has the lock",
		func() bool { _, serving := s.Serving("vm1"); return serving })
	v, _ := s.Serving("vm1")
	if v == nil || *v != (Serving{PID: cmd.Process.Pid}) {
		t.Errorf("%v has the disk open, expected process %d, which serves nobody", v,
			cmd.Process.Pid)
	}
	_, err = s.LockDisk("vm1")
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d",
		cmd.Process.Pid)) || strings.Contains(err.Error(), fmt.Sprint(dead)) {
		t.Errorf("%v, expected process %d", err, cmd.Process.Pid)
	}
}

// A lock's content is written over the old content, and versions that do not know the padding can
// read it. A lock file of an earlier version, shorter or longer, works too.
func TestLockContent(t *testing.T) {
	for name, before := range map[string]string{"none": "", "earlier": `{"pid":7,"socket":"/x"}` +
		"\n", "long": strings.Repeat("x", 5000)} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			create(t, s, "vm1", CreateOptions{Size: 1 << 20})
			write(t, s.path(disksDir, "vm1", lockFile), []byte(before))
			l, err := s.LockDisk("vm1")
			test.Must(t, err)
			want := Serving{PID: os.Getpid(), Control: "/run/" + strings.Repeat("c", 90),
				Socket: "/run/s"}
			for _, v := range []Serving{want, {PID: os.Getpid()}, want} {
				test.Must(t, l.SetServing(v))
				if got, ok := s.Serving("vm1"); !ok || *got != v {
					t.Errorf("%v, expected %v", got, v)
				}
			}
			test.Must(t, l.Unlock())
			if v, ok := s.Serving("vm1"); ok {
				t.Errorf("%v, expected nobody", v)
			}
		})
	}
}
