package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileName is the only file of the FUSE file system.
const fileName = "disk"

// file is a Disk as a file. Reads and writes bypass the page cache, so all content is in the Disk.
type file struct {
	fs.Inode
	disk *Disk
}

var (
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
	_ fs.NodeAllocater = (*file)(nil)
)

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = syscall.S_IFREG|0o600, uint64(f.disk.Size()), pageSize
	return 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult,
	syscall.Errno) {
	n, err := f.disk.ReadAt(dest, off)
	return fuse.ReadResultData(dest[:n]), errno(err)
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32,
	syscall.Errno) {
	n, err := f.disk.WriteAt(data, off)
	return uint32(n), errno(err)
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return errno(f.disk.Sync())
}

// Allocate refuses, so the loop device offers neither discard nor fast zeroing.
func (f *file) Allocate(context.Context, fs.FileHandle, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	}
	return syscall.EINVAL
}

// openMounted mounts a FUSE file system at dir and returns the descriptor to serve it on.
func openMounted(dir string) (*os.File, error) {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Mount("cowblk-test-device", dir, "fuse.cowblk", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", f.Fd()))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("mounting FUSE at %s: %w", dir, err)
	}
	return f, nil
}

// serve starts to serve the file system that is mounted on fd.
func serve(fd int, disk *Disk) error {
	root := &fs.Inode{}
	_, err := fs.Mount(fmt.Sprintf("/dev/fd/%d", fd), root, &fs.Options{
		MountOptions: fuse.MountOptions{MaxWrite: 1 << 20, DisableXAttrs: true,
			DisableSplice: true},
		OnAdd: func(ctx context.Context) {
			child := root.NewPersistentInode(ctx, &file{disk: disk},
				fs.StableAttr{Mode: syscall.S_IFREG})
			root.AddChild(fileName, child, true)
		},
	})
	return err
}
