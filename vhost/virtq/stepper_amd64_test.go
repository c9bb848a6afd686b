package virtq_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// stepper is the tracing process: the driver's side, and the checks after each instruction.
type stepper struct {
	t      *testing.T
	rng    *rand.Rand
	cfg    virtq.SplitConfig
	mem    *virtqtest.Memory
	drv    *virtqtest.Driver
	region []byte
	file   *os.File
	waits  []uint16 // heads that the driver waits for, in the order of the available ring
	copy   *rig     // a ring for successors
	last   []byte   // former content of what the process may change

	cpu                  unix.CPUSet
	pid                  int
	steps, points, kills int
}

func newStepper(t *testing.T, seed uint64, cfg virtq.SplitConfig) *stepper {
	s := &stepper{t: t, rng: rand.New(rand.NewPCG(seed, 1)), cfg: cfg}
	var err error
	if s.mem, err = virtqtest.NewMemory(virtqtest.Layout(stepGPA, stepMemory)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.mem.Close() })
	ring, err := virtqtest.NewRing(s.mem, cfg.Num, stepGPA)
	test.Must(t, err)
	s.drv = virtqtest.NewDriver(ring)
	s.drv.Reset(cfg.Base)
	size := virtq.InflightSize(cfg.InflightNum)
	fd, err := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC)
	test.Must(t, err)
	s.file = os.NewFile(uintptr(fd), "inflight")
	t.Cleanup(func() { s.file.Close() })
	test.Must(t, s.file.Truncate(int64(size)))
	if s.region, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(s.region) })
	c := cfg
	c.Inflight = region(t, cfg.InflightNum)
	s.copy = newRig(t, c)
	return s
}

// pin restricts this thread, and the processes that it starts, to one processor.
func (s *stepper) pin() (undo func()) {
	var before unix.CPUSet
	test.Must(s.t, unix.SchedGetaffinity(0, &before))
	for i := range 1024 {
		if before.IsSet(i) {
			s.cpu.Set(i)
			break
		}
	}
	test.Must(s.t, unix.SchedSetaffinity(0, &s.cpu))
	return func() {
		test.Check(s.t, unix.SchedSetaffinity(0, &before))
	}
}

// start runs a process up to its first read of the ring.
func (s *stepper) start() {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1",
		fmt.Sprintf("%s=%d %d %d %t", stepEnv, s.rng.Uint64(), s.cfg.Num, s.cfg.InflightNum,
			s.cfg.EventIdx))
	// A separate descriptor: the finalizer of a forgotten os.File would close it at some time, when
	// its number may belong to another file.
	fd, err := unix.FcntlInt(uintptr(s.mem.FDs()[0]), unix.F_DUPFD_CLOEXEC, 0)
	test.Must(s.t, err)
	memory := os.NewFile(uintptr(fd), "guest memory")
	defer memory.Close()
	cmd.ExtraFiles = []*os.File{memory, s.file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL}
	test.Must(s.t, cmd.Start(), "a process to step through")
	s.pid = cmd.Process.Pid
	if sig := s.wait(); sig != unix.SIGTRAP {
		s.t.Fatalf("stopped by %v, expected the stop after exec", sig)
	}
	// On two processors each would only wait for the other.
	test.Must(s.t, unix.SchedSetaffinity(s.pid, &s.cpu))
	s.resume()
}

// resume lets the process run up to its next pause.
func (s *stepper) resume() {
	s.t.Helper()
	for {
		test.Must(s.t, unix.PtraceCont(s.pid, 0))
		if s.wait() == stepRegion {
			return
		}
	}
}

// wait returns what stopped the process.
func (s *stepper) wait() unix.Signal {
	s.t.Helper()
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(s.pid, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || !ws.Stopped() {
			s.t.Fatalf("after %d steps: the process is gone: %v, exit status %d", s.steps, err,
				ws.ExitStatus())
		}
		return ws.StopSignal()
	}
}

// kill ends the process where it stands.
func (s *stepper) kill() {
	s.t.Helper()
	test.Must(s.t, unix.Kill(s.pid, unix.SIGKILL))
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(s.pid, &ws, 0, nil); err != nil && err != unix.EINTR {
			s.t.Fatal(err)
		}
		if ws.Signaled() {
			return
		}
	}
}

// view is the memory that the process may change: the used ring, with all of guest memory, and the
// in-flight region.
func (s *stepper) view() [2][]byte {
	return [2][]byte{s.mem.Bytes(stepGPA, virtqtest.RingSize(s.cfg.Num)), s.region}
}

// step steps through the process's part. It returns true if the process was killed at one of the
// points, every odds-th of them.
func (s *stepper) step(odds int) (killed bool) {
	s.t.Helper()
	now := s.view()
	s.last = append(append(s.last[:0], now[0]...), now[1]...)
	for {
		test.Must(s.t, unix.PtraceSingleStep(s.pid))
		s.steps++
		if s.wait() == stepRegion {
			return false
		}
		if bytes.Equal(s.last[:len(now[0])], now[0]) && bytes.Equal(s.last[len(now[0]):], now[1]) {
			continue
		}
		copy(s.last[copy(s.last, now[0]):], now[1])
		s.points++
		s.check()
		if s.rng.IntN(odds) == 0 {
			s.kill()
			s.kills++
			return true
		}
	}
}

// missing returns the heads that the driver waits for now.
func (s *stepper) missing() []uint16 {
	s.t.Helper()
	left := slices.Clone(s.waits)
	taken := s.drv.Taken()
	for i := taken; i != s.drv.UsedIdx(); i++ {
		head, _ := s.drv.UsedElem(i)
		at := slices.Index(left, uint16(head))
		if at < 0 {
			s.t.Fatalf("point %d: used element %d gives head %d, which the driver does not wait for", s.points, i, head)
		}
		left = slices.Delete(left, at, at+1)
	}
	return left
}

// check runs a successor on a copy of the present state: it must find all that the driver waits
// for, once, and in order.
func (s *stepper) check() {
	s.t.Helper()
	want := s.missing()
	now := s.view()
	copy(s.copy.mem.Bytes(ringAddr, virtqtest.RingSize(s.cfg.Num)), now[0])
	copy(s.copy.cfg.Inflight, now[1])
	s.copy.cfg.Base = s.drv.UsedIdx() // all that a front-end knows
	s.copy.restart(s.t)
	var got []uint16
	for {
		head, ok, err := s.copy.q.Next()
		test.Must(s.t, err, "point", s.points, "a successor finds")
		if !ok {
			break
		}
		got = append(got, head)
	}
	if !slices.Equal(got, want) {
		s.t.Fatalf("point %d, used index %d, %d taken by the driver: a successor takes heads %v, the driver waits for %v\nregion %x",
			s.points, s.drv.UsedIdx(), s.drv.Taken(), got, want, now[1])
	}
}

// drive is the driver's part: it takes used elements and adds requests.
func (s *stepper) drive() {
	s.t.Helper()
	s.waits = s.missing()
	for {
		if _, _, ok := s.drv.Take(); !ok {
			break
		}
	}
	if s.drv.Err != nil {
		s.t.Fatal(s.drv.Err)
	}
	for range s.rng.IntN(s.drv.Free() + 1) {
		head, err := s.drv.Add(readable(dataAddr, 16))
		test.Must(s.t, err)
		s.waits = append(s.waits, head)
	}
	s.drv.Expose()
}
