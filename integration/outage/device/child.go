package device

import (
	"fmt"
	"net"
	"net/rpc"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// childEnv marks the child process; its value is the size of the device in bytes.
const childEnv = "COWBLK_TEST_DEVICE"

// controlFD is the child's end of the socket pair, fuseFD the FUSE connection.
const (
	controlFD = 3
	fuseFD    = 4
)

// RunChild returns at once in a program that was started normally. In the child of Start it serves
// the device and exits.
func RunChild() {
	spec := os.Getenv(childEnv)
	if spec == "" {
		return
	}
	if err := child(spec); err != nil {
		fmt.Fprintln(os.Stderr, "test device:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(spec string) error {
	var size int64
	if _, err := fmt.Sscan(spec, &size); err != nil {
		return fmt.Errorf("%s=%s: %w", childEnv, strconv.Quote(spec), err)
	}
	// The namespace is a copy of the parent's. Mounts there on other devices must not stay mounted
	// here.
	if err := unix.Unmount("/", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount /", err)
	}
	conn, err := net.FileConn(os.NewFile(controlFD, "control"))
	if err != nil {
		return err
	}
	disk, err := NewDisk(size)
	if err != nil {
		return err
	}
	if err := serve(fuseFD, disk); err != nil {
		return fmt.Errorf("serving FUSE: %w", err)
	}
	r := rpc.NewServer()
	if err := r.RegisterName(service, &remote{disk: disk}); err != nil {
		return err
	}
	r.ServeConn(conn) // returns when the parent has closed its end, or died
	// A loop device may still hold the file. Its later requests fail, at the latest when this
	// process ends.
	disk.Cut(0)
	disk.Thaw()
	return nil
}

const service = "Disk"

// remote exports a Disk to package rpc.
type remote struct{ disk *Disk }

// CutArgs holds the arguments of Cut and CutAfter.
type CutArgs struct {
	After int64 // 0: at once
	Keep  float64
}

func (r *remote) Ping(struct{}, *struct{}) error { return nil }

func (r *remote) Drain(keep float64, _ *struct{}) error { r.disk.Drain(keep); return nil }

func (r *remote) Cut(a CutArgs, _ *struct{}) error { r.disk.Cut(a.Keep); return nil }

func (r *remote) CutAfter(a CutArgs, _ *struct{}) error {
	r.disk.CutAfter(a.After, a.Keep)
	return nil
}

func (r *remote) PowerOn(struct{}, *struct{}) error { r.disk.PowerOn(); return nil }

func (r *remote) Fail(f Faults, _ *struct{}) error { r.disk.Fail(f); return nil }

func (r *remote) Freeze(struct{}, *struct{}) error { r.disk.Freeze(); return nil }

func (r *remote) Thaw(struct{}, *struct{}) error { r.disk.Thaw(); return nil }

func (r *remote) Seed(seed uint64, _ *struct{}) error { r.disk.Seed(seed); return nil }

func (r *remote) Counters(_ struct{}, c *Counters) error { *c = r.disk.Counters(); return nil }

// socketPair returns two connected ends; both are closed on exec.
func socketPair() (parent, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

// childAttr makes the child die with its parent and gives it a mount namespace of its own. The end
// of the parent's namespace unmounts what lies on the device, which writes to the device. A server
// that was the last process of that namespace would wait for itself for ever, and block every sync
// of the machine.
var childAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: unix.CLONE_NEWNS}
