package harness

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// InstalledQEMU is Debian 12's QEMU (7.2), installed as a package.
const InstalledQEMU = "qemu-system-x86_64"

// Debian releases with a QEMU.
const (
	Debian12          = "Debian 12"           // installed, 7.2
	Debian12Backports = "Debian 12 backports" // 10.0
	Debian13          = "Debian 13"           // 10.0, with changes of its stable branch
	// the newest; testing's while unstable's cannot be unpacked
	DebianUnstable = "Debian unstable"
)

// QEMU is one of the emulators that the tests use.
type QEMU struct {
	Debian  string // release
	Program string
	Version string // as the program prints it: "10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)"

	milliseconds bool // option reconnect-ms (QEMU 9.2) instead of reconnect (removed in 10.1)
}

// ErrUnavailable reports that a release's QEMU cannot be unpacked at present. Only DebianUnstable
// is ever in that state.
var ErrUnavailable = errors.New("QEMU not available")

// FindQEMU returns the QEMU of one of the releases above. It unpacks a QEMU that is not installed
// into the cache first, with all its libraries (20 s each).
func FindQEMU(ctx context.Context, debian string) (QEMU, error) {
	recipe, ok := map[string]string{
		Debian12: "", Debian12Backports: "qemu-backports", Debian13: "qemu-next",
		DebianUnstable: "qemu-unstable",
	}[debian]
	if !ok {
		return QEMU{}, fmt.Errorf("QEMU of %q: expected one of %q, %q, %q, %q", debian, Debian12,
			Debian12Backports, Debian13, DebianUnstable)
	}
	q := QEMU{Debian: debian, Program: InstalledQEMU}
	if recipe != "" {
		dir, err := Artefact(ctx, recipe)
		if err != nil {
			if debian == DebianUnstable && ctx.Err() == nil {
				err = errors.Join(ErrUnavailable, err)
			}
			return QEMU{}, err
		}
		q.Program = filepath.Join(dir, "qemu-system-x86_64")
	}
	out, err := exec.CommandContext(ctx, q.Program, "-version").Output()
	if err != nil {
		return QEMU{}, fmt.Errorf("QEMU of %s: %s -version: %w", debian, q.Program, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	_, q.Version, ok = strings.Cut(first, "version ")
	if !ok {
		return QEMU{}, fmt.Errorf(
			"QEMU of %s: -version printed %q, expected \"QEMU emulator version …\"", debian, first)
	}
	var major, minor int
	if _, err := fmt.Sscanf(q.Version, "%d.%d", &major, &minor); err != nil {
		return QEMU{}, fmt.Errorf("QEMU of %s: version %q: %w", debian, q.Version, err)
	}
	q.milliseconds = major > 9 || major == 9 && minor >= 2
	return q, nil
}

// Reconnect returns the socket option that makes this QEMU try to reach a lost back-end every ms
// milliseconds, or every second if this QEMU supports only seconds.
func (q QEMU) Reconnect(ms int) string {
	if q.milliseconds {
		return fmt.Sprintf("reconnect-ms=%d", ms)
	}
	return "reconnect=1"
}

// QTest is QEMU's own device tests, and a QEMU with the accelerator "qtest" that they need.
type QTest struct{ Tests, QEMU string }

// NewQTest returns the tests. It builds them from Debian 13's source package if they are missing
// (10 minutes).
func NewQTest(ctx context.Context) (QTest, error) {
	dir, err := Artefact(ctx, "qtest")
	if err != nil {
		return QTest{}, err
	}
	return QTest{Tests: filepath.Join(dir, "qos-test"), QEMU: filepath.Join(dir,
		"qemu-system-x86_64")}, nil
}
