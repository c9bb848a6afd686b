//go:build integration

package outage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/integration/harness"
	"cowblk/integration/outage/device"
	"cowblk/internal/test"
)

// diskSize is the size of each disk in bytes. One map page covers 16 MiB of 512-byte blocks.
const diskSize = 32 << 20

// waitLimit bounds a command; each needs a fraction of it.
const waitLimit = 2 * time.Minute

// runSize is the size, in bytes, of the tmpfs for the run directory.
const runSize = 16 << 20

// machine is a file system on a device of its own, with a store on it.
type machine struct {
	*testing.T
	fs    filesystem
	dev   *device.Device
	dir   string // on the host's file system
	run   string // run directory on a tmpfs; it survives the file system
	mnt   string // mount point of the file system
	base  string // raw file, on the host's file system
	store *harness.Store
	disks []*disk

	mounted bool
	device  uint64           // of the store's files
	server  *harness.Process // nil: none runs
}

// base returns the content of the base, made once; disks lie on it.
var base = sync.OnceValues(func() ([]byte, error) {
	p := make([]byte, diskSize)
	for s := range int64(diskSize / sectorSize) {
		put(p[s*sectorSize:], 0, s, 0)
	}
	return p, nil
})

// newMachine makes the file system and the disks on it. The file system is mounted; the disks are
// not served. The store's run directory, where configurable, is on a tmpfs.
func newMachine(t *testing.T, fs filesystem) *machine {
	t.Helper()
	m := newEmptyMachine(t, fs)
	m.createDisks()
	return m
}

func newEmptyMachine(t *testing.T, fs filesystem) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "cowblk-")
	test.Must(t, err)
	m := &machine{T: t, fs: fs, dir: dir, run: filepath.Join(dir, "run"), mnt: filepath.Join(dir,
		"mnt"), base: filepath.Join(dir, "base.raw")}
	t.Cleanup(func() { m.must(os.RemoveAll(dir)) })
	fuse := filepath.Join(dir, "fuse")
	for _, d := range []string{m.run, m.mnt, fuse} {
		m.must(os.Mkdir(d, 0o755))
	}
	m.must(unix.Mount("tmpfs", m.run, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0711", runSize)))
	t.Cleanup(func() { m.must(unix.Unmount(m.run, unix.MNT_DETACH)) })
	m.dev, err = device.Start(fuse, deviceSize)
	m.must(err)
	t.Cleanup(func() { m.must(m.dev.Close()) })
	loop, err := m.dev.Attach()
	m.must(err)
	defer loop.Close()
	m.runOnHost(append(fs.mkfs, loop.Name())...)
	t.Cleanup(m.tearDown)
	m.mountLoop(loop)
	m.store, err = harness.NewStore(filepath.Join(m.mnt, "st"))
	m.must(err)
	if fs.kind == "btrfs" {
		m.runOnHost("btrfs", "-q", "subvolume", "create", m.store.Dir)
	} else {
		m.must(os.Mkdir(m.store.Dir, 0o755))
	}
	m.device = m.deviceNumber()
	m.must(os.Symlink(m.run, filepath.Join(m.store.Dir, "run")))
	return m
}

// tearDown unmounts everything, also after a failed test.
func (m *machine) tearDown() {
	if m.server != nil {
		m.server.Kill()
	}
	for _, d := range m.disks {
		d.disconnect()
	}
	if m.mounted {
		m.must(unix.Unmount(m.mnt, unix.MNT_DETACH))
	}
}

func (m *machine) must(err error) {
	m.Helper()
	test.Must(m, err)
}

// runOnHost runs a program on the host.
func (m *machine) runOnHost(args ...string) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		m.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// cowblk runs a command on the store and returns its error.
func (m *machine) cowblk(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	_, err := m.store.Run(ctx, args...)
	return err
}

func (m *machine) createDisks() {
	m.Helper()
	content, err := base()
	m.must(err)
	m.must(os.WriteFile(m.base, content, 0o444))
	for _, block := range []string{"512", "4K", "64K"} {
		m.newDisk("b"+strings.ToLower(block), block, diskSize, false)
	}
	m.must(m.syncfs())
}

// sameDeviceTries bounds the attempts to mount a file system with its earlier device number.
const sameDeviceTries = 20

// mount attaches the device and mounts it. The file system gets its earlier device number if
// possible (the kernel gives btrfs the lowest free number). A server's records of its files then
// still match, as if nothing had happened.
func (m *machine) mount() {
	m.Helper()
	for try := 1; ; try++ {
		loop, err := m.dev.Attach()
		m.must(err)
		m.mountLoop(loop)
		m.must(loop.Close())
		if m.deviceNumber() == m.device || try == sameDeviceTries {
			return
		}
		m.umount()
	}
}

// deviceNumber returns the device number of the store's files.
func (m *machine) deviceNumber() uint64 {
	m.Helper()
	var st unix.Stat_t
	m.must(unix.Stat(m.store.Dir, &st))
	return st.Dev
}

func (m *machine) mountLoop(loop *os.File) {
	m.Helper()
	test.Must(m, unix.Mount(loop.Name(), m.mnt, m.fs.kind, 0, m.fs.options), "mounting", m.fs.name)
	m.mounted = true
}

// umount unmounts the file system; afterwards the kernel keeps nothing of it.
func (m *machine) umount() {
	m.Helper()
	for end := time.Now().Add(waitLimit); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(m.mnt, 0)
		if err == nil {
			break
		}
		// A killed process releases its files a little later; so does a kernel thread.
		if err != unix.EBUSY || time.Now().After(end) {
			m.Fatalf("unmounting %s: %v", m.fs.name, err)
		}
	}
	m.mounted = false
}

// umountAndMount unmounts in order, so that everything is on the device, and mounts again.
func (m *machine) umountAndMount() {
	m.Helper()
	m.umount()
	m.mount()
}

// serve starts the server of all disks and connects the guests. wrapper is a command that executes
// the server's.
func (m *machine) serve(wrapper ...string) {
	m.Helper()
	m.launch(nil, wrapper...)
	if err := m.connect(waitLimit); err != nil {
		m.Fatalf("%v\n%s", err, m.server.Output())
	}
}

func (m *machine) launch(flags []string, wrapper ...string) {
	m.Helper()
	args := append(slices.Clone(wrapper), m.store.Binary, "--store", m.store.Dir, "serve")
	args = append(args, flags...)
	for _, d := range m.disks {
		args = append(args, d.name)
	}
	var err error
	m.server, err = harness.StartProcess("cowblk serve", exec.Command(args[0], args[1:]...))
	m.must(err)
}

// connect connects the guests that are not connected.
func (m *machine) connect(limit time.Duration) error {
	for _, d := range m.disks {
		if d.guest != nil {
			continue
		}
		if err := d.connect(limit); err != nil {
			return fmt.Errorf("disk %s: %w", d.name, err)
		}
	}
	return nil
}

// kill ends the server with SIGKILL.
func (m *machine) kill() {
	if m.server == nil {
		return
	}
	m.server.Kill()
	m.server = nil
	for _, d := range m.disks {
		d.disconnect()
	}
}

// stop ends the server in order and checks that its exit status is 0.
func (m *machine) stop() {
	m.Helper()
	m.must(m.tryStop())
}

func (m *machine) tryStop() error {
	for _, d := range m.disks {
		d.disconnect()
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	p := m.server
	err := p.Stop(ctx)
	if p.Running() {
		p.Kill()
	}
	m.server = nil
	return err
}

// restart ends the server in order and starts it again; nothing may be lost.
func (m *machine) restart() {
	m.Helper()
	m.stop()
	for _, d := range m.disks {
		d.oracle.flushed()
	}
	m.serve()
}

// verify reads every disk and compares it with its oracle.
func (m *machine) verify(e event) {
	m.Helper()
	m.verifyAs("", e)
}

// verifyAs verifies one case of a test. The test continues after an error.
func (m *machine) verifyAs(name string, e event) {
	m.Helper()
	var errs bytes.Buffer
	for _, d := range m.disks {
		if err := d.verify(e); err != nil {
			fmt.Fprintf(&errs, "disk %s: %v\n", d.name, err)
		}
	}
	if errs.Len() > 0 {
		m.Errorf("%s\n%slog of the server:\n%s", name, errs.String(), m.server.Output())
	}
	if name == "" && m.Failed() {
		m.FailNow()
	}
}

// crash ends the server, unmounts the file system, and mounts it again on a working device;
// unflushed content may be lost. It then serves and checks.
func (m *machine) crash() {
	m.Helper()
	m.kill()
	m.umount()
	m.must(m.dev.Fail(device.Faults{}))
	m.must(m.dev.PowerOn())
	m.mount()
	m.serve()
	m.verify(remounted)
}
