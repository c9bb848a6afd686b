package harness

import (
	"context"
	"path/filepath"
)

// Blkio is the set of Debian 13's vhost-user-blk clients that use libblkio.
type Blkio struct {
	QEMUImg, QEMUIO string // block driver virtio-blk-vhost-user
	NBDKit, Plugin  string // nbdkit's blkio plugin
}

// NewBlkio returns the clients. It unpacks them if they are missing (25 s).
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

// Image returns an option string for --image-opts: the block device on a back-end's socket. The
// driver requires cache.direct.
func (Blkio) Image(socket string) string {
	return "driver=raw,file.driver=virtio-blk-vhost-user,file.path=" + socket +
		",file.cache.direct=on"
}
