//go:build integration

package outage

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/integration/harness"
	"cowblk/integration/outage/device"
)

// insideEnv marks the process that runs in a mount namespace of its own.
const insideEnv = "COWBLK_TEST_OUTAGE_INSIDE"

func TestMain(m *testing.M) {
	device.RunChild()
	status, err := runInNamespace(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "outage tests cannot start:", err)
		status = 1
	}
	os.Exit(status)
}

// machinesAtOnce is the number of machines that run at a time.
const machinesAtOnce = 6

// runInNamespace runs the tests in a mount namespace of their own.
func runInNamespace(m *testing.M) (int, error) {
	if err := device.Missing(); err != nil {
		return 1, err
	}
	if os.Getenv(insideEnv) != "" {
		// Mounts stay in this namespace and in those that "unshare" makes for servers. An unmount
		// propagates to the latter; otherwise the file system would stay mounted there.
		for _, kind := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
			if err := unix.Mount("", "/", "", unix.MS_REC|kind, ""); err != nil {
				return 1, fmt.Errorf("changing the propagation of mounts: %w", err)
			}
		}
		// A machine spends most of its time waiting for its device.
		flag.Parse()
		if err := flag.Set("test.parallel", strconv.Itoa(machinesAtOnce)); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}
	for _, tool := range []string{"mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs", "unshare", "cp"} {
		if _, err := exec.LookPath(tool); err != nil {
			return 1, fmt.Errorf("%w: run 'make deps' first", err)
		}
	}
	binary, err := harness.Binary()
	if err == nil {
		binary, err = filepath.Abs(binary)
	}
	if err != nil {
		return 1, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1", "COWBLK_BINARY="+binary)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS,
		Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}
