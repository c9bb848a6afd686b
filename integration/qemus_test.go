//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"

	"cowblk/integration/harness"
)

// Which QEMU a test runs on. TestEveryQEMU boots a guest on every one and goes
// through everything that concerns the protocol, in a minute. The long tests each
// run on the QEMUs that they name: each QEMU is named by some of them, Debian 13's
// by most, because it is the one of today. With qemusEnv set to "all"
// ("make test-qemus") all of them run on all.
const qemusEnv = "COWBLK_QEMUS"

// everyQEMU is the releases of Debian whose QEMU is tried, oldest first.
func everyQEMU() []string {
	return []string{harness.Debian12, harness.Debian12Backports, harness.Debian13, harness.DebianUnstable}
}

// onAll says whether every test runs on every QEMU.
func onAll() bool { return os.Getenv(qemusEnv) == "all" }

// onQEMUs is what a test runs on: usual, or all.
func onQEMUs(usual ...string) []string {
	if onAll() {
		return everyQEMU()
	}
	return usual
}

// findQEMUs fills suite.qemus. Debian unstable may be between two states in which
// nothing can be unpacked. What needs it is skipped then, unless all was asked for.
func findQEMUs(ctx context.Context) error {
	suite.qemus = map[string]harness.QEMU{}
	for _, name := range everyQEMU() {
		q, err := harness.FindQEMU(ctx, name)
		if errors.Is(err, harness.ErrUnavailable) && !onAll() {
			suite.lacks = err
			fmt.Fprintf(os.Stderr, "QEMU of %s: its tests are skipped: %v\n", name, err)
			continue
		}
		if err != nil {
			return err
		}
		suite.qemus[name] = q
		fmt.Fprintf(os.Stderr, "QEMU of %s: %s\n", name, q.Version)
	}
	return nil
}

// qemu is the QEMU of a release. It ends the test if that cannot be had.
func (e *env) qemu(debian string) harness.QEMU {
	e.Helper()
	q, ok := suite.qemus[debian]
	if !ok {
		e.Skipf("QEMU of %s cannot be unpacked at the moment: %v", debian, suite.lacks)
	}
	return q
}
