//go:build integration

package outage

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/integration/outage/device"
)

// wholeDevice is the whole device.
var wholeDevice = []device.Range{{Off: 0, Len: deviceSize}}

// leaveUnflushed leaves disks with flushed content and, over it and beside it, unflushed content.
// The kernel has written back everything but the data of the latter.
func (m *machine) leaveUnflushed(salt int64) {
	m.Helper()
	m.scatter(salt)
	m.fsyncAllButData()
}

// The device loses power before the unflushed content is written back; the kernel continues.
func TestPowerCutInTheSameBoot(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		for n := range int64(2) {
			m.leaveUnflushed(n)
			m.must(m.dev.Cut(0))
			m.crash()
		}
	})
}

// Every write fails while a disk is served, so the guest's flush fails. The server is then killed,
// and the device works again.
func TestDeviceFailsWhileServed(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults device.Faults
	}{
		{"writes", device.Faults{Writes: wholeDevice}},
		{"syncs", device.Faults{Syncs: true}},
		{"everything", device.Faults{Reads: wholeDevice, Writes: wholeDevice, Syncs: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			onEach(t, func(m *machine) {
				m.serve()
				m.leaveUnflushed(1)
				m.must(m.dev.Fail(c.faults))
				for _, d := range m.disks {
					if err := d.flush(); err == nil {
						m.Errorf("disk %s: a flush succeeded on a failing device", d.name)
					}
					// The results do not matter: these writes are not flushed.
					_ = d.write(1000, 64)
					_ = d.write(30000, 3)
					if err := d.flush(); err == nil {
						m.Errorf("disk %s: a second flush succeeded", d.name)
					}
				}
				m.crash()
			})
		})
	}
}

// The file system is shut down without a flush of its log, as after an error.
func TestFileSystemShutDown(t *testing.T) {
	onEach(t, func(m *machine) {
		if !m.fs.shutdown {
			m.Skipf("%s has no shutdown ioctl; TestDeviceFailsWhileServed is the nearest test",
				m.fs.name)
		}
		m.serve()
		m.leaveUnflushed(1)
		root, err := os.Open(m.mnt)
		m.must(err)
		// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, with NOLOGFLUSH.
		err = unix.IoctlSetPointerInt(int(root.Fd()), 0x8004587d, 2)
		root.Close()
		m.must(err)
		for _, d := range m.disks {
			if err := d.flush(); err == nil {
				m.Errorf("disk %s: a flush succeeded on a file system that is shut down", d.name)
			}
		}
		m.crash()
	})
}

// A frozen device is only slow: no request fails, and nothing is lost.
func TestDeviceFreezes(t *testing.T) {
	onEach(t, func(m *machine) {
		m.serve()
		m.scatter(1)
		m.must(m.dev.Freeze())
		flushed := make(chan error, len(m.disks))
		for _, d := range m.disks {
			go func() { flushed <- d.guest.Driver(0).Flush() }()
		}
		m.must(m.dev.Thaw())
		for range m.disks {
			m.must(<-flushed)
		}
		for _, d := range m.disks {
			d.oracle.flushed()
		}
		m.must(m.dev.Cut(0))
		m.crash()
	})
}
