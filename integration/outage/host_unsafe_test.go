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

// pageOut calls process_madvise(MADV_PAGEOUT) for a range of another process's addresses.
func pageOut(pid int, start, length uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	// The kernel reads this as struct iovec. The address belongs to the other process.
	iov := [2]uint64{start, length}
	_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(fd),
		uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0)
	runtime.KeepAlive(&iov)
	if errno != 0 {
		return fmt.Errorf("process_madvise(%d, %#x, %d): %w", pid, start, length, errno)
	}
	return nil
}

// maxExtents bounds the extents of a file; more are an error.
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
	extentUnknown      = 0x2        // FIEMAP_EXTENT_UNKNOWN: not allocated yet
	extentDataInline   = 0x200      // FIEMAP_EXTENT_DATA_INLINE
	extentHasNoAddress = extentUnknown | extentDataInline
)

// extents returns the positions of a file's data on the device.
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

// unwritten returns the number of a file's pages that are dirty or under write-back.
func unwritten(f *os.File) (uint64, error) {
	// struct cachestat_range: the whole file; struct cachestat: cached, dirty, under write-back,
	// evicted, recently evicted.
	var whole [2]uint64
	var stat [5]uint64
	_, _, errno := unix.Syscall6(sysCachestat, f.Fd(), uintptr(unsafe.Pointer(&whole)),
		uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
	runtime.KeepAlive(&whole)
	runtime.KeepAlive(&stat)
	if errno != 0 {
		return 0, fmt.Errorf("cachestat of %s: %w", f.Name(), errno)
	}
	return stat[1] + stat[2], nil
}
