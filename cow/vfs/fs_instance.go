package vfs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An inode number in sysfs identifies one mount of a file system, in contrast to the next mount of
// the same device: the kernel numbers the objects there (kernfs) in the order of their creation and
// reuses no number while it runs. The unique ID of the mount (STATX_MNT_ID_UNIQUE) does not: a
// service with its own mount namespace gets copies of all mounts, with new IDs, at each start.

// sysfsOf are the directories with an object for each mounted file system, named after its block
// device.
var sysfsOf = []string{"/sys/fs/ext4", "/sys/fs/xfs", "/sys/fs/f2fs", "/sys/fs/nilfs2",
	"/sys/fs/bcachefs"}

// Instance implements SharedFS.
func (OS) Instance(f File) (string, error) {
	o, ok := f.(*osFile)
	if !ok {
		return "", fmt.Errorf("file system of %s: %w", f.Name(), errors.ErrUnsupported)
	}
	var st unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_SUBVOL
	if err := unix.Statx(o.fd, "", unix.AT_EMPTY_PATH, mask, &st); err != nil {
		return "", o.fail("statx", err)
	}
	if o.block {
		return deviceInstance(o.fd, st.Rdev_major, st.Rdev_minor)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(o.fd, &fs); err != nil {
		return "", o.fail("statfs", err)
	}
	switch {
	case fs.Type == unix.BTRFS_SUPER_MAGIC:
		name, err := btrfsInstance(o.fd)
		if err == nil {
			return fmt.Sprintf("%s subvolume %d", name, st.Subvol), nil
		}
		if !errors.Is(err, unix.ENOENT) {
			return "", o.fail("name of the file system", err)
		}
	case o.memory: // its content is gone with the mount
		return fmt.Sprintf("tmpfs %d:%d", st.Dev_major, st.Dev_minor), nil
	case st.Dev_major != 0:
		name, err := blockInstance(st.Dev_major, st.Dev_minor)
		if err == nil || !errors.Is(err, unix.ENOENT) {
			return name, err
		}
	default: // FUSE, NFS: they have a device number and write-back of their own
		name, err := sysfsObject(fmt.Sprintf("/sys/class/bdi/%d:%d", st.Dev_major, st.Dev_minor))
		if err == nil || !errors.Is(err, unix.ENOENT) {
			return name, err
		}
	}
	return "", fmt.Errorf("file system of %s: nothing in /sys identifies its mount (expected /sys, and ext4, XFS, Btrfs, F2FS, tmpfs, NFS or FUSE): %w", o.name, errors.ErrUnsupported)
}

// blockInstance finds the object of the file system that is mounted from a device.
func blockInstance(major, minor uint32) (string, error) {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return "", err
	}
	for _, dir := range sysfsOf {
		name, err := sysfsObject(filepath.Join(dir, filepath.Base(link)))
		if err == nil || !errors.Is(err, unix.ENOENT) {
			return name, err
		}
	}
	return "", unix.ENOENT
}

// deviceInstance returns the number that the kernel assigns each time that something else is
// attached to the device (Linux 5.15).
func deviceInstance(fd int, major, minor uint32) (string, error) {
	seq, err := diskSequence(fd)
	if err == nil {
		return fmt.Sprintf("device %d:%d sequence %d", major, minor, seq), nil
	}
	if !errors.Is(err, unix.ENOTTY) {
		return "", err
	}
	return sysfsObject(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
}

// sysfsObject names an object of sysfs; a link is followed.
func sysfsObject(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fmt.Sprintf("%s #%d", path, st.Ino), nil
}

func btrfsInstance(fd int) (string, error) {
	id, err := btrfsID(fd)
	if err != nil {
		return "", err
	}
	h := hex.EncodeToString(id[:])
	return sysfsObject("/sys/fs/btrfs/" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] +
		"-" + h[20:])
}
