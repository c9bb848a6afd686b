//go:build integration

package outage

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowblk/integration/outage/device"
)

// pageOut is process_madvise(MADV_PAGEOUT) on a range of another process' addresses.
func pageOut(pid int, start, length uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	// The kernel reads struct iovec; the address is not one of this process.
	iov := [2]uint64{start, length}
	_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0)
	runtime.KeepAlive(&iov)
	if errno != 0 {
		return fmt.Errorf("process_madvise(%d, %#x, %d): %w", pid, start, length, errno)
	}
	return nil
}

// maxExtents of a file; more are an error.
const maxExtents = 4096

// fiemapExtent is struct fiemap_extent of linux/fiemap.h.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// fiemap is struct fiemap of linux/fiemap.h.
type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [maxExtents]fiemapExtent
}

const (
	fsIOCFiemap        = 0xc020660b // FS_IOC_FIEMAP
	extentUnknown      = 0x2        // FIEMAP_EXTENT_UNKNOWN: no place yet
	extentDataInline   = 0x200      // FIEMAP_EXTENT_DATA_INLINE
	extentHasNoAddress = extentUnknown | extentDataInline
)

// extents returns where a file is on the device.
func extents(f *os.File) (ranges []device.Range, err error) {
	arg := &fiemap{length: 1<<64 - 1, count: maxExtents}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIOCFiemap, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return nil, fmt.Errorf("FIEMAP of %s: %w", f.Name(), errno)
	}
	if arg.mapped == maxExtents {
		return nil, fmt.Errorf("%s has more than %d extents", f.Name(), maxExtents-1)
	}
	for _, e := range arg.extents[:arg.mapped] {
		if e.flags&extentHasNoAddress == 0 {
			ranges = append(ranges, device.Range{Off: int64(e.physical), Len: int64(e.length)})
		}
	}
	return ranges, nil
}

// sysCachestat is the number of cachestat(2), Linux 6.5.
const sysCachestat = 451

// unwritten returns how many pages of a file are dirty or being written back.
func unwritten(f *os.File) (uint64, error) {
	// struct cachestat_range: all of the file; struct cachestat: cached, dirty, written back, evicted, recently.
	var whole [2]uint64
	var stat [5]uint64
	_, _, errno := unix.Syscall6(sysCachestat, f.Fd(), uintptr(unsafe.Pointer(&whole)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	runtime.KeepAlive(&whole)
	runtime.KeepAlive(&stat)
	if errno != 0 {
		return 0, fmt.Errorf("cachestat of %s: %w", f.Name(), errno)
	}
	return stat[1] + stat[2], nil
}
