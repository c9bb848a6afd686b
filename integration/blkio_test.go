//go:build integration

package integration

import (
	"bytes"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/integration/harness"
)

// blkioDisk is the size, in bytes, of the disk that libblkio's clients write to.
const blkioDisk = 64 << 20

// runTool runs a program to its end and returns what it printed.
func (e *env) runTool(program string, args ...string) string {
	e.Helper()
	out, err := exec.CommandContext(e.ctx, program, args...).CombinedOutput()
	if err != nil {
		e.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// blkioSource makes a file of blkioDisk bytes: MiBs of random data and of zeros in turn.
func (e *env) blkioSource() (path string, content []byte) {
	e.Helper()
	content = make([]byte, blkioDisk)
	r := rand.NewChaCha8([32]byte{13})
	for at := 0; at < len(content); at += 2 << 20 {
		r.Read(content[at : at+1<<20])
	}
	path = filepath.Join(e.dir, "source.raw")
	e.must(os.WriteFile(path, content, 0o600))
	return path, content
}

// qemu-img and qemu-io of Debian 13 reach a disk through libblkio: they write it, find their data
// after a restart of the back-end, and use every request type.
func TestQEMUImgByLibblkio(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	tools, err := harness.NewBlkio(e.ctx)
	e.must(err)
	source, _ := e.blkioSource()
	disk := e.disk("disk", "--size", "64M")
	s := e.serve(disk)
	image := tools.Image(s.Socket)
	e.runTool(tools.QEMUImg, "convert", "-n", "-T", "none", "-f", "raw", "--target-image-opts",
		source, image)
	same := func(when string) {
		t.Helper()
		t.Log(when)
		// exit status 1: they differ
		e.runTool(tools.QEMUImg, "compare", "--image-opts", "driver=file,filename="+source, image)
	}
	same("after qemu-img convert")
	e.cowblk("promote", disk, "--tag", "converted")
	same("after a promotion")
	e.stopServer(s)
	s = e.serve(disk)
	same("after a restart")
	e.runTool(tools.QEMUImg, "bench", "--image-opts", "-w", "-t", "none", "-c", "20000", "-d", "64",
		"-s", "4096", "-S", "8192", image)
	e.runTool(tools.QEMUIO, "--image-opts", "-t", "none",
		"-c", "write -P 5 512 1M", "-c", "read -P 5 512 1M", "-c", "flush",
		"-c", "write -z 3M 1M", "-c", "read -P 0 3M 1M",
		"-c", "write -z -u 5M 1M", "-c", "read -P 0 5M 1M",
		"-c", "discard 7M 1M", "-c", "write -f -P 6 9M 4k", "-c", "read -P 6 9M 4k",
		"-c", "aio_write -P 1 16M 64k", "-c", "aio_write -P 2 17M 64k", "-c", "aio_flush", "-c",
		"read -P 2 17M 64k",
		image)
	e.stopServer(s)
	// The tag holds the converted data.
	clone := e.name("clone")
	e.cowblk("create", clone, "--from", disk+"@converted")
	s = e.serve(clone)
	image = tools.Image(s.Socket)
	same("in the tag")
	e.stopServer(s)
}

// nbdkit of Debian 13 serves a disk through libblkio to an NBD client.
func TestNBDKitByLibblkio(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	tools, err := harness.NewBlkio(e.ctx)
	e.must(err)
	source, content := e.blkioSource()
	s := e.serve(e.disk("disk", "--size", "64M"))
	socket := filepath.Join(e.dir, "nbd")
	kit, err := harness.StartBackend(e.ctx, exec.CommandContext(e.ctx, tools.NBDKit, "-f", "-U",
		socket, tools.Plugin,
		"virtio-blk-vhost-user", "path="+s.Socket), socket)
	e.must(err)
	kitServer := e.watch(kit)
	uri := "nbd+unix:///?socket=" + url.QueryEscape(socket)
	e.runTool("nbdcopy", source, uri)
	if !bytes.Equal(e.copyOut(uri), content) {
		t.Error("nbdcopy read other data than it wrote")
	}
	e.runTool("qemu-io", "-f", "raw",
		"-c", "write -P 9 4k 64k", "-c", "read -P 9 4k 64k", "-c", "flush", "-c", "discard 1M 1M",
		"-c", "write -z 2M 1M", "-c", "read -P 0 2M 1M", "-c", "write -f -P 3 5M 4k", uri)
	e.stopServer(kitServer)
	e.stopServer(s)
}
