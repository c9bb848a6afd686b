//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// Two guests from one image: after a restart each finds the data that it synced before, and none of
// the other guest's.
func TestTwoGuestsFromOneImage(t *testing.T) {
	for _, name := range onQEMUs(harness.Debian12, harness.Debian13) {
		boot := harness.BootQuick
		if name == harness.Debian12 {
			boot = harness.BootDirect
		}
		t.Run("QEMU of "+name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			qemu := e.qemu(name)
			both := []string{"left", "right"}
			written := map[string]string{}
			for round := range 2 {
				for _, side := range both {
					if round == 0 {
						e.serve(e.disk(side, "--from", imageGolden))
					}
				}
				guests := map[string]*harness.Machine{}
				for _, side := range both {
					guests[side] = e.start(harness.MachineOptions{Name: side, QEMU: qemu,
						Boot:  boot,
						Disks: []string{e.socket(e.name(side))}})
				}
				for _, side := range both {
					m := guests[side]
					e.ready(m)
					if round == 0 {
						written[side] = e.run(m, fmt.Sprintf(`set -e
							mkdir /root/%[1]s && echo "written by %[1]s" >/root/%[1]s/mark
							dd if=/dev/urandom of=/root/%[1]s/data bs=1M count=16 status=none
							sha256sum /root/%[1]s/*; sync`, side))
						continue
					}
					if now := e.run(m, fmt.Sprintf("sha256sum /root/%s/*",
						side)); now != written[side] {
						t.Errorf("%s wrote\n%s\nand found after a restart\n%s", side, written[side],
							now)
					}
					if names := strings.Fields(e.run(m, "ls /root")); len(names) != 1 ||
						names[0] != side {
						t.Errorf("%s finds %q in its /root; only %q was written there", side, names,
							side)
					}
				}
				for _, side := range both {
					e.must(guests[side].PowerOff(e.ctx))
				}
			}
		})
	}
}
