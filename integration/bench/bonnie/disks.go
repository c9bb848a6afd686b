package bonnie

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"cowblk/integration/harness"
)

// kind is the kind of a contender's disk.
type kind string

const (
	raw        kind = "raw"         // QEMU's virtio-blk over a raw file
	stack      kind = "cowblk"      // a served disk
	dmSnapshot kind = "dm-snapshot" // a chain of snapshots made in the guest
)

// contender is one kind of disk.
type contender struct {
	Name  string `json:"name"`
	Kind  kind   `json:"kind"`
	Depth int    `json:"depth,omitempty"` // layers over the base
}

// contenders: the others are compared with the first.
var contenders = []contender{
	{Name: "virtio-blk, raw", Kind: raw},
	{Name: "cowblk, depth 1", Kind: stack, Depth: 1},
	{Name: "cowblk, depth 8", Kind: stack, Depth: 8},
	{Name: "dm-snapshot, depth 1", Kind: dmSnapshot, Depth: 1},
	{Name: "dm-snapshot, depth 8", Kind: dmSnapshot, Depth: 8},
}

// layerMiB is the size of the file in each layer below the writable one.
const layerMiB = 16

// Scripts for the guest. Its disks: vda is the root, vdb the tools, vdc the disk to measure. For
// dm-snapshot vdc is the base and vdd has space for the exception stores.
const (
	scriptTools = `
mkdir -p /run/tools
tar -xf /dev/vdb -C /run/tools
chmod +x /run/tools/*
`
	// Arguments: the number of the layer and the size of its file.
	scriptLayer = `
set -e
mount -t ext4 "$(cat /run/device)" /mnt
dd if=/dev/zero of=/mnt/layer%[1]d bs=1M count=%[2]d conv=fsync status=none
umount /mnt
`
	// Puts a snapshot on top of the chain. Arguments: its number, from 0, and the size of each
	// lower layer's store in 512-byte sectors; the last store gets the remaining space. No udev
	// runs to make device nodes.
	scriptSnapshot = `
set -e
export DM_DISABLE_UDEV=1 LD_LIBRARY_PATH=/run/tools
modprobe dm-snapshot
n=%[1]d at=$((%[1]d * %[2]d)) length=%[2]d
[ %[3]t = false ] || length=$(($(blockdev --getsz /dev/vdd) - at))
/run/tools/dmsetup create store$n --table "0 $length linear /dev/vdd $at"
/run/tools/dmsetup create top$n --table "0 $(blockdev --getsz /dev/vdc) snapshot $(cat /run/device) /dev/mapper/store$n P 8"
echo /dev/mapper/top$n >/run/device
`
	// Arguments: the size of the file and of the memory in MiB, and thousands of small files.
	scriptBonnie = `
set -e
mount -t ext4 "$(cat /run/device)" /mnt
echo 3 >/proc/sys/vm/drop_caches
/run/tools/bonnie++ -q -u root -d /mnt -f -s %[1]d -r %[2]d -n %[3]d -m guest 2>/run/bonnie.err || { cat /run/bonnie.err; exit 1; }
umount /mnt
`
)

// storeSectors is the size of a lower layer's store: the layer's file, the file system's changes
// around it, and the exceptions.
const storeSectors = 4 * layerMiB << 20 / 512

// measure runs bonnie++ once.
func (s *settings) measure(ctx context.Context, c contender) (measures, error) {
	dir, err := os.MkdirTemp(s.dir, "run")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	r := &runner{settings: s, contender: c, ctx: ctx, dir: dir}
	defer r.close()
	return r.run()
}

// runner is one run: a guest with its disks.
type runner struct {
	*settings
	contender
	ctx     context.Context
	dir     string
	machine *harness.Machine
	backend *harness.Backend
}

func (r *runner) close() {
	if r.machine != nil {
		r.machine.Close()
	}
	if r.backend != nil {
		r.backend.Kill()
	}
}

const stackName = "disk"

// plain returns QEMU arguments for a disk over a raw file.
func plain(id, file, options string) []string {
	return []string{"-drive", fmt.Sprintf("if=none,id=%s,file=%s,format=raw%s", id, file, options),
		"-device", "virtio-blk-pci,disable-legacy=on,drive=" + id}
}

// disks makes the disks to measure and returns QEMU arguments for them.
func (r *runner) disks() ([]string, error) {
	file := filepath.Join(r.dir, "disk.raw")
	switch r.Kind {
	case raw:
		return plain("disk", file, ""), command(r.ctx, "cp", "--sparse=always", r.base, file)
	case dmSnapshot:
		return append(plain("disk", r.base, ",readonly=on"), plain("stores", file, "")...),
			sparse(file, r.diskMiB()+(r.Depth-1)*storeSectors*512>>20+64)
	}
	if _, err := r.store.Run(r.ctx, "create", stackName, "--from", "base"); err != nil {
		return nil, err
	}
	socket := filepath.Join(r.dir, "disk.sock")
	var err error
	if r.backend, err = r.store.Serve(r.ctx, stackName, socket); err != nil {
		return nil, err
	}
	return []string{"-chardev", "socket,id=disk,path=" + socket,
		"-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,disable-legacy=on"}, nil
}

func (r *runner) run() (measures, error) {
	disks, err := r.disks()
	if err != nil {
		return nil, err
	}
	extra := append(plain("root", r.golden.Raw, ",snapshot=on"), plain("tools", r.tools,
		",readonly=on")...)
	r.machine, err = harness.StartMachine(r.ctx, harness.MachineOptions{
		Dir: r.dir, Golden: r.golden, Boot: harness.BootQuick, MemoryMiB: r.fileMiB / 2,
		Extra: append(extra, disks...)})
	if err != nil {
		return nil, err
	}
	if _, _, err := r.machine.Ready(r.ctx); err != nil {
		return nil, err
	}
	if err := r.layers(); err != nil {
		return nil, err
	}
	output, err := r.machine.Run(r.ctx, fmt.Sprintf(scriptBonnie, r.fileMiB, r.fileMiB/2, r.files))
	if err != nil {
		return nil, err
	}
	v, err := parse(output)
	if err != nil {
		return nil, err
	}
	if err := r.machine.Quit(r.ctx); err != nil {
		return nil, err
	}
	if r.backend != nil {
		if err := r.backend.Stop(r.ctx); err != nil {
			return nil, err
		}
		_, err = r.store.Run(r.ctx, "rm", "--yes", stackName)
	}
	return v, err
}

// layers makes the layers and fills all but the last.
func (r *runner) layers() error {
	if _, err := r.machine.Run(r.ctx, scriptTools+"echo /dev/vdc >/run/device"); err != nil {
		return err
	}
	for n := range r.Depth {
		last := n == r.Depth-1
		var err error
		switch {
		case r.Kind == dmSnapshot:
			_, err = r.machine.Run(r.ctx, fmt.Sprintf(scriptSnapshot, n, storeSectors, last))
		case n > 0:
			_, err = r.store.Run(r.ctx, "promote", stackName, "--tag", fmt.Sprint("layer", n))
		}
		if err != nil {
			return err
		}
		if last {
			break
		}
		if _, err := r.machine.Run(r.ctx, fmt.Sprintf(scriptLayer, n, layerMiB)); err != nil {
			return err
		}
	}
	return nil
}

// sparse makes an empty sparse file.
func sparse(path string, mib int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(mib) << 20); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// command runs a tool of the host. It also looks in the administrator's directories, which many
// users' PATH lacks.
func command(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name)
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, output.String())
	}
	return nil
}
