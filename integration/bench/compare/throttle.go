package compare

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// slowReads is the reads per second of the throttled disk. The kernel grants them in slices of a
// tenth of a second: with more requests in flight than a slice holds, all take about as long.
const slowReads = 50

// slowDisk throttles a process's reads of the disk under dir with the kernel's io.max of control
// groups; reads from the page cache are not affected. It returns a function that removes the
// throttle. The delay is real: the disk's answer comes late. A device-mapper delay target would do
// the same on kernels that have it.
func slowDisk(dir string, pid int) (undo func() error, err error) {
	device, err := wholeDisk(dir)
	if err != nil {
		return nil, err
	}
	group, file, limit := "/sys/fs/cgroup/blkio", "blkio.throttle.read_iops_device",
		fmt.Sprintf("%s %d", device, slowReads)
	if _, err := os.Stat(group); err != nil {
		group, file, limit = "/sys/fs/cgroup", "io.max", fmt.Sprintf("%s riops=%d", device,
			slowReads)
		// This fails if it is already enabled or not possible. In the latter case the write below
		// fails.
		_ = os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+io"), 0)
	}
	own := filepath.Join(group, "cowcompare-"+strconv.Itoa(pid))
	if err := os.Mkdir(own, 0o755); err != nil {
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	undo = func() error {
		all, err := os.ReadFile(filepath.Join(own, "cgroup.procs"))
		for p := range strings.FieldsSeq(string(all)) {
			err = errors.Join(err, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(p), 0))
		}
		return errors.Join(err, os.Remove(own))
	}
	for _, w := range [][2]string{{file, limit}, {"cgroup.procs", strconv.Itoa(pid)}} {
		if err := os.WriteFile(filepath.Join(own, w[0]), []byte(w[1]), 0); err != nil {
			return nil, errors.Join(fmt.Errorf("throttling %s: %w", device, err), undo())
		}
	}
	return undo, nil
}

// wholeDisk returns MAJOR:MINOR of the disk that a directory lies on.
func wholeDisk(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	path, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return "", fmt.Errorf("%s is not on a block device that can be throttled: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(path, "partition")); err == nil {
		path = filepath.Dir(path)
	}
	b, err := os.ReadFile(filepath.Join(path, "dev"))
	return strings.TrimSpace(string(b)), err
}
