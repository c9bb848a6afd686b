package vfs

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// btrfsFSInfo is struct btrfs_ioctl_fs_info_args (linux/btrfs.h), 1,024 bytes.
type btrfsFSInfo struct {
	MaxID, Devices uint64
	ID             [16]byte
	_              [1024 - 32]byte
}

// btrfsID is the UUID of the btrfs that fd is on.
func btrfsID(fd int) ([16]byte, error) {
	const fsInfo = 0x8400941f // BTRFS_IOC_FS_INFO
	var info btrfsFSInfo
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsInfo,
		uintptr(unsafe.Pointer(&info))); errno != 0 {
		return [16]byte{}, errno
	}
	return info.ID, nil
}

// diskSequence is BLKGETDISKSEQ (linux/fs.h).
func diskSequence(fd int) (seq uint64, err error) {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETDISKSEQ,
		uintptr(unsafe.Pointer(&seq))); errno != 0 {
		return 0, errno
	}
	return seq, nil
}
