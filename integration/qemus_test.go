//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"cowblk/integration/harness"
)

// The QEMUs that a test runs on. TestEveryQEMU runs a guest on every QEMU and takes it through
// every part of the protocol, in a minute. Each long test names the QEMUs that it runs on; every
// QEMU is named by some test, that of Debian 13, the current release, by most. With $COWBLK_QEMUS
// set to "all" ("make test-qemus") all tests run on all QEMUs.
const qemusEnv = "COWBLK_QEMUS"

// everyQEMU returns the releases of Debian whose QEMU is tested, oldest first.
func everyQEMU() []string {
	return []string{harness.Debian12, harness.Debian12Backports, harness.Debian13,
		harness.DebianUnstable}
}

// onAll reports whether every test runs on every QEMU.
func onAll() bool { return os.Getenv(qemusEnv) == "all" }

// onQEMUs returns the releases that a test runs on: usual, or all.
func onQEMUs(usual ...string) []string {
	if onAll() {
		return everyQEMU()
	}
	return usual
}

// onEach runs a test beside others on the QEMU of each release.
func onEach(t *testing.T, names []string, f func(t *testing.T, e *env, qemu harness.QEMU)) {
	for _, name := range names {
		t.Run("QEMU of "+name, func(t *testing.T) {
			t.Parallel()
			e := newEnv(t)
			f(t, e, e.qemu(name))
		})
	}
}

// findQEMUs fills suite.qemus. Debian unstable can be in a state in which its packages cannot be
// unpacked. Its tests are then skipped, unless all QEMUs were requested.
func findQEMUs(ctx context.Context) error {
	suite.qemus = map[string]harness.QEMU{}
	for _, name := range everyQEMU() {
		q, err := harness.FindQEMU(ctx, name)
		if errors.Is(err, harness.ErrUnavailable) && !onAll() {
			suite.unavailable = err
			fmt.Fprintf(os.Stderr, "QEMU of %s: tests are skipped: %v\n", name, err)
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

// qemu returns the QEMU of a release. It skips or ends the test if there is none.
func (e *env) qemu(debian string) harness.QEMU {
	e.Helper()
	q, ok := suite.qemus[debian]
	if !ok {
		e.Skipf("QEMU of %s cannot be unpacked at present: %v", debian, suite.unavailable)
	}
	return q
}
