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

// slowReads is how many reads per second a slow disk does. The kernel gives them
// out a tenth of a second's worth at a time: with more requests than that in
// flight, each takes about as long.
const slowReads = 50

// slowDisk makes a process's reads of the disk under dir slow, by the kernel's
// own throttle for groups of processes; what is in the page cache is not
// concerned. It returns how to undo that. The delay is real, the disk's answer
// comes that late; a delaying device-mapper target would do the same, where the
// kernel has one.
func slowDisk(dir string, pid int) (undo func() error, err error) {
	device, err := wholeDisk(dir)
	if err != nil {
		return nil, err
	}
	group, file, limit := "/sys/fs/cgroup/blkio", "blkio.throttle.read_iops_device", fmt.Sprintf("%s %d", device, slowReads)
	if _, err := os.Stat(group); err != nil {
		group, file, limit = "/sys/fs/cgroup", "io.max", fmt.Sprintf("%s riops=%d", device, slowReads)
		// Refused where it is on already, or cannot be: the write below tells.
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

// wholeDisk is the MAJOR:MINOR of the disk that a directory lies on.
func wholeDisk(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	path, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return "", fmt.Errorf("%s lies on no block device that could be throttled: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(path, "partition")); err == nil {
		path = filepath.Dir(path)
	}
	b, err := os.ReadFile(filepath.Join(path, "dev"))
	return strings.TrimSpace(string(b)), err
}
