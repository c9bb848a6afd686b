package vhost

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// checkEventFD refuses a descriptor that is not an eventfd, and makes it non-blocking. Any other
// file could block the thread that signals it for as long as the front-end likes: a full pipe, or a
// file system of the front-end's own (FUSE), where not even poll returns. The front-end can make an
// eventfd blocking again, so the Backend must tolerate that.
//
// The type is read from the name in /proc, which does not access the file system of the file.
func checkEventFD(fd int) error {
	const want = "anon_inode:[eventfd]"
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return fmt.Errorf("kind of a file descriptor: %w", err)
	}
	if name != want {
		return fmt.Errorf("expected an eventfd, found %.40s: %w", name, ErrProtocol)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}
