package control

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups returns the supplementary groups of a UNIX socket's peer at connect (SO_PEERGROUPS,
// socket(7)).
func peerGroups(fd int) ([]uint32, error) {
	for n := 64; ; n *= 4 {
		groups := make([]uint32, n)
		size := uint32(4 * n)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT,
			uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case !errors.Is(errno, unix.ERANGE) || n > 1<<20:
			return nil, errno
		}
	}
}
