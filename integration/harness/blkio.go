package harness

import (
	"context"
	"path/filepath"
)

// Blkio is Debian 13's clients of vhost-user-blk other than QEMU's guests, all by
// libblkio.
type Blkio struct {
	QEMUImg, QEMUIO string // block driver virtio-blk-vhost-user
	NBDKit, Plugin  string // nbdkit's blkio plugin
}

// NewBlkio finds them, unpacked first when missing (25 s).
func NewBlkio(ctx context.Context) (Blkio, error) {
	dir, err := Artefact(ctx, "blkio")
	if err != nil {
		return Blkio{}, err
	}
	return Blkio{
		QEMUImg: filepath.Join(dir, "qemu-img"),
		QEMUIO:  filepath.Join(dir, "qemu-io"),
		NBDKit:  filepath.Join(dir, "nbdkit"),
		Plugin:  filepath.Join(dir, "plugins", "nbdkit-blkio-plugin.so"),
	}, nil
}

// Image returns the block device of a back-end's socket as an option string for
// --image-opts. The driver wants cache.direct.
func (Blkio) Image(socket string) string {
	return "driver=raw,file.driver=virtio-blk-vhost-user,file.path=" + socket + ",file.cache.direct=on"
}
