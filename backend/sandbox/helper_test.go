package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/backend/sandbox/sandboxtest"
	"cowblk/cow/aio"
)

// helperEnv makes the test binary confine itself and report what it can still do. Its value is a
// JSON task.
const helperEnv = "COWBLK_TEST_CONFINED"

// task describes what a helper does.
type task struct {
	Mode  Mode
	Rules Rules
	Dir   string // of the files that ops use
	Port  string // with a listener
	// Forbid, if not 0, is the error of landlock's system calls.
	Forbid unix.Errno
}

// answer is the result: the error of each op, empty for none, by thread and op.
type answer struct {
	Report  Report
	Error   string
	Missing bool // Error is ErrUnsupported
	Ops     map[string]map[string]string
	Status  []string // NoNewPrivs of each thread
}

func TestMain(m *testing.M) {
	if text := os.Getenv(helperEnv); text != "" {
		var t task
		if err := json.Unmarshal([]byte(text), &t); err != nil {
			panic(err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(t.run()); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// run confines this process and executes all ops on threads from before, which sleep in the kernel
// meanwhile, and on new ones.
func (t *task) run() (a answer) {
	if t.Forbid != 0 {
		if err := sandboxtest.Forbid(t.Forbid); err != nil {
			panic(err)
		}
	}
	held, err := os.Open(filepath.Join(t.Dir, "foreign", "file"))
	if err != nil {
		panic(err)
	}
	a.Ops = map[string]map[string]string{}
	before, ring, ready := make(chan map[string]string), make(chan string), make(chan struct{})
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		panic(err)
	}
	// Both threads sleep in the kernel until the confinement is done, which may interrupt them.
	sleep := func() {
		for n := 0; n == 0; {
			n, _ = unix.Poll([]unix.PollFd{{Fd: int32(pipe[0]), Events: unix.POLLIN}}, -1)
			n = max(n, 0)
		}
	}
	go func() {
		runtime.LockOSThread()
		ready <- struct{}{}
		sleep()
		before <- t.try("before", held)
	}()
	go func() {
		runtime.LockOSThread() // a ring belongs to one thread
		r := newRing()
		err := r.read(held)
		ready <- struct{}{}
		sleep()
		ring <- text(errors.Join(err, r.read(held)))
	}()
	<-ready
	<-ready
	report, err := Confine(t.Mode, t.Rules)
	a.Report = report
	if err != nil {
		a.Error, a.Missing = err.Error(), errors.Is(err, ErrUnsupported)
	}
	unix.Write(pipe[1], []byte{0})
	a.Ops["before"] = <-before
	after := make(chan map[string]string)
	go func() {
		runtime.LockOSThread()
		after <- t.try("after", held)
	}()
	a.Ops["after"] = <-after
	a.Ops["ring"] = map[string]string{"read what is open": <-ring}
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, file := range tasks {
		// Only if /proc is readable.
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			a.Status = append(a.Status, err.Error())
			continue
		}
		_, rest, _ := strings.Cut(string(content), "NoNewPrivs:")
		a.Status = append(a.Status, strings.Fields(rest)[0])
	}
	return a
}

// try executes all ops once. name distinguishes the files.
func (t *task) try(name string, held *os.File) map[string]string {
	at := func(elem ...string) string { return filepath.Join(append([]string{t.Dir}, elem...)...) }
	write := func(path string) error { return os.WriteFile(path, []byte(name), 0o600) }
	open := func(path string, flag int) error {
		fd, err := unix.Open(path, flag|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	ops := map[string]func() error{
		"read what is open": func() error {
			_, err := held.ReadAt(make([]byte, 1), 0)
			return err
		},
		"read foreign":     func() error { return open(at("foreign", "file"), unix.O_RDONLY) },
		"write foreign":    func() error { return open(at("foreign", "file"), unix.O_WRONLY) },
		"truncate foreign": func() error { return os.Truncate(at("foreign", "file"), 1) },
		"make foreign":     func() error { return write(at("foreign", name)) },
		"remove foreign":   func() error { return os.Remove(at("foreign", "old-"+name)) },
		"list foreign":     func() error { _, err := os.ReadDir(at("foreign")); return err },
		"read /etc/passwd": func() error { return open("/etc/passwd", unix.O_RDONLY) },
		"read":             func() error { return open(at("read", "file"), unix.O_RDONLY) },
		"list":             func() error { _, err := os.ReadDir(at("read")); return err },
		"write to read":    func() error { return open(at("read", "file"), unix.O_WRONLY) },
		"truncate read":    func() error { return os.Truncate(at("read", "file"), 1) },
		"make in read":     func() error { return write(at("read", name)) },
		"write file":       func() error { return open(at("write"), unix.O_RDWR|unix.O_TRUNC) },
		"make":             func() error { return write(at("change", name)) },
		"make directory": func() error {
			return os.MkdirAll(at("change", name+".d", "sub"), 0o700)
		},
		"sync directory": func() error {
			return open(at("change"), unix.O_RDONLY|unix.O_DIRECTORY)
		},
		"rename over": func() error { return renamed(at("change"), at("change2"), name) },
		"rename to foreign": func() error {
			return renamed(at("change"), at("foreign"), name+".out")
		},
		"rename from foreign": func() error {
			return os.Rename(at("foreign", "mv-"+name), at("change", "stolen-"+name))
		},
		"link foreign": func() error {
			return os.Link(at("foreign", "file"), at("change", "link-"+name))
		},
		"symlink":             func() error { return os.Symlink("x", at("change", "sym-"+name)) },
		"make socket":         func() error { return listen(at("sockets", name)) },
		"make foreign socket": func() error { return listen(at("foreign", "sock-"+name)) },
		"connect to a socket": func() error { return connect("unix", at("foreign", "listens")) },
		"connect to abstract": func() error { return connect("unix", "@"+at("abstract")) },
		"connect to TCP":      func() error { return connect("tcp", "127.0.0.1:"+t.Port) },
		"listen on TCP": func() error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			return closed(l, err)
		},
		"signal the parent": func() error { return unix.Kill(os.Getppid(), 0) },
		"signal oneself":    func() error { return unix.Kill(os.Getpid(), 0) },
		"execute":           func() error { return exec.Command("/bin/true").Run() },
		"execute one's own": func() error { return exec.Command(at("change", "program")).Run() },
		"read another process": func() error {
			return open(fmt.Sprintf("/proc/%d/mem", os.Getppid()), unix.O_RDONLY)
		},
	}
	failed := map[string]string{}
	for op, f := range ops {
		failed[op] = text(f())
	}
	return failed
}

// text returns the errno of an error, or its text.
func text(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// renamed creates a file and renames it.
func renamed(from, to, name string) error {
	if err := os.WriteFile(filepath.Join(from, "moving-"+name), nil, 0o600); err != nil {
		return err
	}
	return os.Rename(filepath.Join(from, "moving-"+name), filepath.Join(to, "moved-"+name))
}

func listen(path string) error {
	l, err := net.Listen("unix", path) // Close removes it
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return errors.New("the socket is left")
	}
	return nil
}

func connect(network, address string) error {
	c, err := net.Dial(network, address)
	return closed(c, err)
}

func closed(c interface{ Close() error }, err error) error {
	if err != nil {
		return err
	}
	return c.Close()
}

// ring is an I/O engine, with kernel worker threads, made before the confinement.
type ring struct {
	engine *aio.Engine // nil: io_uring is not available
	buf    []byte
}

func newRing() *ring {
	e, err := aio.New(128, -1)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		panic(err)
	}
	return &ring{e, make([]byte, 4096)}
}

func (r *ring) read(f *os.File) error {
	if r.engine == nil {
		_, err := f.ReadAt(r.buf[:1], 0)
		return err
	}
	iov := []unix.Iovec{{Base: &r.buf[0], Len: uint64(len(r.buf))}}
	if !r.engine.Start(1, false, int(f.Fd()), iov, 0) {
		return errors.New("the engine is full")
	}
	if err := r.engine.Submit(); err != nil {
		return err
	}
	for {
		for _, c := range r.engine.Reap(nil) {
			if c.Err != 0 {
				return c.Err
			}
			return nil
		}
		runtime.Gosched()
	}
}
