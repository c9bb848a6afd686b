package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"cowblk/internal/test"
)

// childEnv makes the test binary act on a store as another process: "ACTION DIR ARGS".
const childEnv = "COWBLK_TEST_STORE_CHILD"

func TestMain(m *testing.M) {
	if line := os.Getenv(childEnv); line != "" {
		os.Exit(child(strings.Fields(line)))
	}
	syscall.Umask(0o022) // root refuses stores in directories that a group may write to
	os.Exit(m.Run())
}

// child prints the result and, if it holds something, waits until standard input ends.
func child(args []string) int {
	s, err := Open(args[1], Options{Getenv: noEnv})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	switch args[0] {
	case "rundir": // of the user's default store
		env := map[string]string{"XDG_DATA_HOME": args[1], runtimeEnv: args[2]}
		getenv := func(k string) string { return env[k] }
		if s, err = Open(args[1]+"/"+programDir, Options{Getenv: getenv}); err == nil {
			err = errors.Join(s.MakeRunDir(), s.CheckRunDir())
		}
	case "create":
		_, err = s.Create(ctx, args[2], CreateOptions{Size: 1 << 20})
	case "open":
		var o *Opened
		if o, err = s.OpenDisk(ctx, args[2], OpenOptions{}); err == nil {
			defer o.Close()
			err = o.Lock.SetServing(Serving{PID: os.Getpid(), Socket: "/run/x.sock",
				Control: "/run/x.ctl"})
		}
	case "die": // in a promotion, with a write that was not flushed
		var o *Opened
		if o, err = s.OpenDisk(ctx, args[2], OpenOptions{Serve: true}); err == nil {
			if _, err = o.Disk.WriteAt(noise(8, 8192), 16384); err == nil && len(args) > 3 {
				var p *Pending
				if p, err = s.PreparePromotion(ctx, []*Manifest{o.Manifest}, args[3]); err == nil {
					err = p.Commit()
				}
			}
		}
		if err == nil {
			fmt.Println("now")
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	case "import":
		_, err = s.Import(ctx, args[2], args[3], ImportOptions{Progress: func(_ string, done,
			total int64) {
			if done*2 >= total {
				fmt.Println("half")
				bufio.NewReader(os.Stdin).ReadByte()
			}
		}})
	}
	switch {
	case errors.Is(err, ErrExists):
		fmt.Println("exists")
	case errors.Is(err, ErrInUse):
		fmt.Println("in use")
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println("done")
	}
	if args[0] == "open" && err == nil {
		bufio.NewReader(os.Stdin).ReadByte()
	}
	return 0
}

// process is a running child.
type process struct {
	cmd *exec.Cmd
	in  interface{ Close() error }
	out *bufio.Reader
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(args, " "))
	in, err := cmd.StdinPipe()
	test.Must(t, err)
	out, err := cmd.StdoutPipe()
	test.Must(t, err)
	test.Must(t, cmd.Start())
	return &process{cmd, in, bufio.NewReader(out)}
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	return strings.TrimSpace(s)
}

func (p *process) end() {
	p.in.Close()
	p.cmd.Wait()
}

func TestProcessesCreateOneName(t *testing.T) {
	s := newStore(t)
	var all []*process
	for range 6 {
		all = append(all, start(t, "create", s.Dir(), "vm1"))
	}
	count := map[string]int{}
	for _, p := range all {
		count[p.line(t)]++
		p.end()
	}
	if count["done"] != 1 || count["exists"] != 5 {
		t.Errorf("%v, want one to win", count)
	}
	content(t, s, "vm1")
	if layers, _ := os.ReadDir(s.path(layersDir)); len(layers) != 1 {
		t.Errorf("%d layers for one disk", len(layers))
	}
}

func TestProcessesCreateManyNames(t *testing.T) {
	s := newStore(t)
	var all []*process
	for i := range 6 {
		all = append(all, start(t, "create", s.Dir(), fmt.Sprint("vm", i)))
	}
	for _, p := range all {
		if got := p.line(t); got != "done" {
			t.Error(got)
		}
		p.end()
	}
	if disks, err := s.Disks(); err != nil || len(disks) != 6 {
		t.Errorf("%d disks, %v", len(disks), err)
	}
}

func TestProcessesOpenOneDisk(t *testing.T) {
	s := newStore(t)
	create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	if _, serving := s.Serving("vm1"); serving {
		t.Error("served by nobody")
	}
	a, b := start(t, "open", s.Dir(), "vm1"), start(t, "open", s.Dir(), "vm1")
	got := []string{a.line(t), b.line(t)}
	if got[0] == "in use" {
		a, b = b, a
	}
	if strings.Join(got, " ") != "done in use" && strings.Join(got, " ") != "in use done" {
		t.Fatalf("%v, want one of them to have it", got)
	}
	b.end()
	defer a.end()

	v, serving := s.Serving("vm1")
	if !serving || v.PID != a.cmd.Process.Pid || v.Socket != "/run/x.sock" ||
		v.Control != "/run/x.ctl" {
		t.Errorf("serving %+v, %v", v, serving)
	}
	pid := fmt.Sprint(a.cmd.Process.Pid)
	for what, f := range map[string]func() error{
		"open":    func() error { _, err := s.OpenDisk(ctx, "vm1", OpenOptions{}); return err },
		"promote": func() error { _, err := s.Promote(ctx, []string{"vm1"}, "t"); return err },
		"remove":  func() error { _, err := s.Remove(ctx, "vm1"); return err },
	} {
		if err := f(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), pid) {
			t.Errorf("%s: %v; want ErrInUse with PID %s", what, err, pid)
		}
	}
	// A killed process holds nothing.
	a.cmd.Process.Kill()
	a.end()
	if _, serving := s.Serving("vm1"); serving {
		t.Error("served by a dead process")
	}
	content(t, s, "vm1")
}

// The next command removes the work of a killed process, but not of a live one.
func TestKilledImport(t *testing.T) {
	s := newStore(t)
	src := tempFile(t, "src", noise(1, 4<<20))
	dead, alive := start(t, "import", s.Dir(), src, "a"), start(t, "import", s.Dir(), src, "b")
	if dead.line(t) != "half" || alive.line(t) != "half" {
		t.Fatal("no import under way")
	}
	dead.cmd.Process.Kill()
	dead.end()
	if works, _ := os.ReadDir(s.path(tmpDir)); len(works) != 2 {
		t.Fatalf("%d transaction directories, want both", len(works))
	}
	create(t, s, "vm1", CreateOptions{Size: 512})
	if works, _ := os.ReadDir(s.path(tmpDir)); len(works) != 1 {
		t.Errorf("%d transaction directories, want the live one", len(works))
	}
	alive.in.Close()
	for got := "half"; got != "done"; got = alive.line(t) {
		if got != "half" {
			t.Fatal(got)
		}
	}
	alive.end()
	if _, err := s.Image("b"); err != nil {
		t.Error(err)
	}
	if works, _ := os.ReadDir(s.path(tmpDir)); len(works) != 0 {
		t.Errorf("%d transaction directories", len(works))
	}
}

func TestStoreBusy(t *testing.T) {
	s := newStore(t)
	s.lockTimeout = 50 * time.Millisecond
	err := s.locked(ctx, func() error {
		_, err := s.Create(ctx, "vm1", CreateOptions{Size: 512})
		return err
	})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("error %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	s.lockTimeout = time.Hour
	err = s.locked(ctx, func() error {
		return s.locked(canceled, func() error { return nil })
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
