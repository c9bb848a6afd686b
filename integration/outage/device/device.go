package device

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Device is a Disk in a child process. Its methods are safe for concurrent use.
type Device struct {
	dir    string
	cmd    *exec.Cmd
	client *rpc.Client
	stderr bytes.Buffer // of the child; read it only when the child has ended
	loop   int          // number of the loop device; 0: none yet
}

// Missing returns an error that names what this machine lacks for a Device, or nil.
func Missing() error {
	if os.Geteuid() != 0 {
		return errors.New("not root: cannot mount FUSE and loop devices")
	}
	var errs []error
	for _, p := range []string{"/dev/fuse", "/dev/loop-control"} {
		_, err := os.Stat(p)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Start makes a device of size bytes, all zeros. Its FUSE file system is mounted at dir, an empty
// directory without spaces in its name.
func Start(dir string, size int64) (*Device, error) {
	mine, its, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer its.Close()
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		return nil, err
	}
	mounted, err := openMounted(dir)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer mounted.Close()
	d := &Device{dir: dir, cmd: exec.Command("/proc/self/exe")}
	d.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", childEnv, size))
	d.cmd.ExtraFiles = []*os.File{its, mounted}
	d.cmd.Stdout, d.cmd.Stderr = &d.stderr, &d.stderr
	d.cmd.SysProcAttr = childAttr
	if err := d.cmd.Start(); err != nil {
		err = errors.Join(err, d.unmount())
		conn.Close()
		return nil, fmt.Errorf("test device: %w", err)
	}
	d.client = rpc.NewClient(conn)
	if err := d.call("Ping", struct{}{}); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close ends the child. Requests that the kernel has not finished fail.
func (d *Device) Close() error {
	err := d.client.Close()
	if d.loop != 0 {
		err = errors.Join(err, loopControl(unix.LOOP_CTL_REMOVE, d.loop))
	}
	err = errors.Join(err, d.unmount())
	if werr := d.cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("test device: %w\n%s", werr, d.stderr.String()))
	}
	return err
}

func (d *Device) unmount() error {
	return os.NewSyscallError("umount", unix.Unmount(d.dir, unix.MNT_DETACH))
}

func (d *Device) call(method string, args any) error {
	if err := d.client.Call(service+"."+method, args, &struct{}{}); err != nil {
		return fmt.Errorf("test device: %s: %w", method, err)
	}
	return nil
}

// Drain calls the method of Disk; so do the methods below.
func (d *Device) Drain(keep float64) error { return d.call("Drain", keep) }

// Cut calls Disk.Cut.
func (d *Device) Cut(keep float64) error { return d.call("Cut", CutArgs{Keep: keep}) }

// CutAfter calls Disk.CutAfter.
func (d *Device) CutAfter(n int64, keep float64) error {
	return d.call("CutAfter", CutArgs{After: n, Keep: keep})
}

// PowerOn calls Disk.PowerOn.
func (d *Device) PowerOn() error { return d.call("PowerOn", struct{}{}) }

// Fail calls Disk.Fail.
func (d *Device) Fail(f Faults) error { return d.call("Fail", f) }

// Freeze calls Disk.Freeze.
func (d *Device) Freeze() error { return d.call("Freeze", struct{}{}) }

// Thaw calls Disk.Thaw.
func (d *Device) Thaw() error { return d.call("Thaw", struct{}{}) }

// Seed calls Disk.Seed.
func (d *Device) Seed(seed uint64) error { return d.call("Seed", seed) }

// Counters calls Disk.Counters.
func (d *Device) Counters() (c Counters, err error) {
	err = d.client.Call(service+".Counters", struct{}{}, &c)
	return c, err
}

// Loop devices are created by number, from firstLoop. A device keeps its number for its lifetime,
// so that its file systems have the same device number whenever they are mounted. Other programs
// ask the kernel for the lowest free number and do not get it meanwhile.
const (
	firstLoop = 200
	lastLoop  = 999
)

var loops struct {
	sync.Mutex
	next int // counted from firstLoop
}

// Attach makes a loop device over the device and returns it open. The loop device disappears when
// it is closed and nothing is mounted from it. The next Attach sees nothing that the kernel cached
// for this one.
func (d *Device) Attach() (*os.File, error) {
	backing, err := os.OpenFile(filepath.Join(d.dir, fileName), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	if d.loop != 0 {
		return configure(d.loop, backing)
	}
	loops.Lock()
	defer loops.Unlock()
	for n := firstLoop + loops.next; n <= lastLoop; n++ {
		loops.next++
		loop, err := d.makeLoop(n, backing)
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			d.loop = n
			return loop, err
		}
	}
	return nil, fmt.Errorf("no loop device from %d to %d is free", firstLoop, lastLoop)
}

// makeLoop makes loop device n. It returns EEXIST or EBUSY if another process has it.
func (d *Device) makeLoop(n int, backing *os.File) (*os.File, error) {
	if err := loopControl(unix.LOOP_CTL_ADD, n); err != nil {
		return nil, err
	}
	return configure(n, backing)
}

// loopControl calls an ioctl of /dev/loop-control for loop device n.
func loopControl(request uint, n int) error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	if err := unix.IoctlSetInt(int(control.Fd()), request, n); err != nil {
		return fmt.Errorf("/dev/loop-control, loop device %d: %w", n, err)
	}
	return nil
}

func configure(n int, backing *os.File) (*os.File, error) {
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// sets the logical block size
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: SectorSize}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &config); err != nil {
		loop.Close()
		return nil, fmt.Errorf("configuring %s: %w", loop.Name(), err)
	}
	return loop, nil
}
