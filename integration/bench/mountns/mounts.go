package mountns

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// insideEnv is set in a process that has a mount namespace of its own.
const insideEnv = "COWBLK_TEST_OWN_MOUNTS"

// Enter executes this program again in a mount namespace of its own. In that process it returns
// nil. No other process copies its mounts, which would keep a device busy, and none of them
// survives the process. Enter returns an error if the user is not root or unshare(1) is missing.
func Enter() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("expected to run as root to mount file systems, found user %d",
			os.Geteuid())
	}
	if os.Getenv(insideEnv) != "" {
		return nil
	}
	tool, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append([]string{tool, "--mount", "--", self}, os.Args[1:]...)
	return fmt.Errorf("%s: %w", tool, syscall.Exec(tool, args,
		append(os.Environ(), insideEnv+"=1")))
}
