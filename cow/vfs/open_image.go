package vfs

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// ErrNotImage is wrapped by KindError.
var ErrNotImage = errors.New("not a file that can hold a disk image")

// KindError says that a path leads to something that cannot hold a disk image.
type KindError struct {
	Path  string
	Found string // its kind, such as "a FIFO"
}

func (e *KindError) Error() string {
	return fmt.Sprintf("%q: expected a regular file or a block device, found %s", e.Path, e.Found)
}

// Unwrap makes errors.Is(err, ErrNotImage) true.
func (e *KindError) Unwrap() error { return ErrNotImage }

// OpenImage opens a file that a user has named: on the command line, in a table, in an image. It
// returns an ErrNotImage unless it is a regular file or a block device. It checks that before the
// open, which may have effects on a device (a tape rewinds, a watchdog starts), and OpenFile checks
// it again. Files that the kernel generates (/proc, /sys and the like) are refused too: a read of
// them may block for ever.
func OpenImage(fsys FS, name string, flag int) (File, error) {
	st, err := fsys.Stat(name)
	if err != nil {
		return nil, err
	}
	if found := notImage(name, st.Mode()); found != "" {
		return nil, &KindError{Path: name, Found: found}
	}
	f, err := fsys.OpenFile(name, flag, 0)
	if errors.Is(err, ErrNotFile) {
		return nil, &KindError{Path: name,
			Found: "another kind of file in its place since the check"}
	}
	return f, err
}

func notImage(name string, mode fs.FileMode) string {
	switch {
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeCharDevice != 0:
		return "a character device"
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeDevice != 0:
		return ""
	case !mode.IsRegular():
		return "a file of another kind"
	}
	var st unix.Statfs_t
	if unix.Statfs(name, &st) == nil {
		if kernel := kernelFS[int64(st.Type)]; kernel != "" {
			return "a file of " + kernel + ", which the kernel makes up"
		}
	}
	return ""
}

// kernelFS are file systems without storage, by the type that statfs(2) returns.
var kernelFS = map[int64]string{
	unix.PROC_SUPER_MAGIC:    "proc",
	unix.SYSFS_MAGIC:         "sysfs",
	unix.DEBUGFS_MAGIC:       "debugfs",
	unix.TRACEFS_MAGIC:       "tracefs",
	unix.CGROUP_SUPER_MAGIC:  "cgroup",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2",
	unix.SECURITYFS_MAGIC:    "securityfs",
	unix.SELINUX_MAGIC:       "selinuxfs",
	unix.SMACK_MAGIC:         "smackfs",
	unix.BPF_FS_MAGIC:        "bpf",
	unix.BINFMTFS_MAGIC:      "binfmt_misc",
	unix.EFIVARFS_MAGIC:      "efivarfs",
	unix.PSTOREFS_MAGIC:      "pstore",
	unix.NSFS_MAGIC:          "nsfs",
	unix.DEVPTS_SUPER_MAGIC:  "devpts",
	0x62656570:               "configfs",
	0x65735543:               "fusectl",
	0x19800202:               "mqueue",
}
