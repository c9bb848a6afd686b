package eventfd

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

func open(t *testing.T) int {
	t.Helper()
	fd, err := New()
	test.Must(t, err)
	t.Cleanup(func() { Close(fd) })
	return fd
}

// fill makes the counter as large as it can be, so that a write would have to wait.
func fill(t *testing.T, fd int) {
	t.Helper()
	test.Must(t, test.Err(unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 1<<64-2))))
}

func expect(t *testing.T, fd int, want uint64) {
	t.Helper()
	if n, err := Drain(fd); n != want || err != nil {
		t.Errorf("Drain: %d, %v; expected %d", n, err, want)
	}
}

func TestSignalAndDrain(t *testing.T) {
	fd := open(t)
	expect(t, fd, 0)
	for range 3 {
		test.Must(t, Signal(fd))
	}
	test.Must(t, Wait(fd))
	expect(t, fd, 3)
	fill(t, fd)
	test.Check(t, Signal(fd), "with a full counter")
	expect(t, fd, 1<<64-2)
	test.Check(t, Signal(-1), "without an eventfd")
	Close(-1)
	if n := testing.AllocsPerRun(10,
		func() { _ = Signal(fd); _ = Wait(fd); _, _ = Drain(fd) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNotAnEventfd(t *testing.T) {
	var pipe [2]int
	test.Must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	defer Close(pipe[0])
	for _, p := range []string{"abc", ""} {
		test.Must(t, test.Err(unix.Write(pipe[1], []byte(p))))
		if p == "" {
			Close(pipe[1]) // readable for ever
		}
		if n, err := Drain(pipe[0]); n != 0 || err == nil {
			t.Errorf("Drain of %q: %d, %v", p, n, err)
		}
	}
	if err := Signal(pipe[0]); err == nil {
		t.Error("Signal of the read end of a pipe")
	}
}

// Another process makes the eventfd blocking, and full or empty, under a thread that uses it.
func TestUnblock(t *testing.T) {
	for _, c := range []struct {
		name     string
		full     bool
		use      func(fd int)
		unblock  func(fd int)
		readable bool // afterwards
	}{
		{"Signal", true, func(fd int) { _ = Signal(fd) }, UnblockSignal, true},
		{"Drain", false, func(fd int) { _, _ = Drain(fd) }, UnblockDrain, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd := open(t)
			if c.full {
				fill(t, fd)
			}
			test.Must(t, unix.SetNonblock(fd, false))
			done := make(chan struct{})
			go func() { c.use(fd); close(done) }()
			for freed := false; !freed; c.unblock(fd) {
				select {
				case <-done:
					freed = true
				case <-time.After(time.Millisecond):
				}
			}
			if n, err := Drain(fd); c.readable && n == 0 || err != nil {
				t.Errorf("afterwards: %d, %v", n, err)
			}
		})
	}
	fd := open(t)
	UnblockSignal(fd) // nothing to do: no spurious signal
	expect(t, fd, 0)
	UnblockSignal(-1)
	UnblockDrain(-1)
}

func TestNotifier(t *testing.T) {
	var n Notifier
	test.Must(t, n.Open())
	for range 3 {
		if err := n.Notify(); err != nil || !n.Pending() {
			t.Fatalf("Notify: %v, pending %t", err, n.Pending())
		}
	}
	expect(t, n.FD(), 1)
	n.Drain() // of what FD's user has taken
	if n.Pending() {
		t.Error("pending after Drain")
	}
	_ = n.Notify()
	expect(t, n.FD(), 1)
	test.Check(t, n.Close())
}
