//go:build integration

package integration

import (
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// The firmware finds and loads everything from the served disk.
func TestFirmwareBoots(t *testing.T) {
	for _, c := range []struct {
		name, image, loader, firmware string
		boot                          harness.BootFrom
	}{
		{"SeaBIOS", imageBIOS, "loader=extlinux", "bios", harness.BootBIOS},
		{"OVMF", imageGolden, "loader=systemd-boot", "efi", harness.BootUEFI},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			s := e.serve(e.disk("root", "--from", c.image))
			m := e.boot(harness.MachineOptions{Boot: c.boot, Disks: []string{s.Socket}})
			if line := e.run(m, "cat /proc/cmdline"); !strings.Contains(line, c.loader) {
				t.Errorf("kernel command line is %q; expected %q from the disk's boot loader", line, c.loader)
			}
			if got := e.run(m, "[ -d /sys/firmware/efi ] && echo efi || echo bios"); got != c.firmware {
				t.Errorf("the kernel was started by %s; expected %s", got, c.firmware)
			}
			e.must(m.PowerOff(e.ctx))
			e.halt(s)
		})
	}
}
