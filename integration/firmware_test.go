//go:build integration

package integration

import (
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// The firmware finds and loads everything from the served disk.
func TestFirmwareBoots(t *testing.T) {
	type firmware struct {
		name, image, loader, firmware string
		boot                          harness.BootFrom
	}
	run := func(c firmware, qemu string) {
		t.Run(c.name+" on QEMU of "+qemu, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			q := e.qemu(qemu)
			s := e.serve(e.disk("root", "--from", c.image))
			m := e.boot(harness.MachineOptions{QEMU: q, Boot: c.boot, Disks: []string{s.Socket}})
			if line := e.run(m, "cat /proc/cmdline"); !strings.Contains(line, c.loader) {
				t.Errorf("kernel command line is %q; expected %q from the disk's boot loader", line,
					c.loader)
			}
			if got := e.run(m,
				"[ -d /sys/firmware/efi ] && echo efi || echo bios"); got != c.firmware {
				t.Errorf("the kernel was started by %s; expected %s", got, c.firmware)
			}
			e.must(m.PowerOff(e.ctx))
			e.stopServer(s)
		})
	}
	for _, qemu := range onQEMUs(harness.Debian13) {
		run(firmware{"SeaBIOS", imageBIOS, "loader=extlinux", "bios", harness.BootBIOS}, qemu)
		run(firmware{"OVMF", imageGolden, "loader=systemd-boot", "efi", harness.BootUEFI}, qemu)
	}
}
