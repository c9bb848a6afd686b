package vhost

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// checkEventFD refuses what is no eventfd where one belongs, and makes it
// non-blocking. Anything else could make the thread that signals it wait for as
// long as the front-end likes: a full pipe, a file system of the front-end's own
// (FUSE), where not even poll returns. An eventfd that the front-end makes
// blocking again can still do that; the Backend must be able to live with it.
//
// The kind is read from the name in /proc, which asks no file system anything.
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
