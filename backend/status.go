package backend

import (
	"cowblk/vhost/blk"
)

// statusOf is the one table from an engine's error to the status byte that the
// driver sees (virtio 1.2, 5.2.6: OK, IOERR, UNSUPP).
func statusOf(err error) blk.Status {
	if err == nil {
		return blk.StatusOK
	}
	return blk.StatusIOErr
}
