package compare

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"

	"cowblk/integration/bench/compare/report"
)

// node is a block device of qemu-storage-daemon, with all nodes below it.
type node map[string]any

// fileNode returns a file node that uses the page cache and io_uring.
func fileNode(path string) node {
	return node{"driver": "file", "filename": path, "aio": "io_uring"}
}

// rawNode returns a raw image.
func rawNode(path string) node { return node{"driver": "raw", "file": fileNode(path)} }

// chainNode returns a chain of qcow2 images, oldest first, over a raw base. It names every file:
// QEMU would open unnamed files below the top with its thread pool.
func chainNode(base string, images []string) node {
	below := rawNode(base)
	for _, i := range images {
		below = node{"driver": "qcow2", "file": fileNode(i), "backing": below}
	}
	return below
}

// export returns qemu-storage-daemon with one disk on a socket.
func (s *site) export(n node, writable bool) func(string) *exec.Cmd {
	return func(socket string) *exec.Cmd {
		return s.exportAll([]node{n}, []string{socket}, writable)
	}
}

// exportAll returns qemu-storage-daemon with a disk on each socket: in an I/O thread of its own,
// which polls, or in the main loop, which does not.
func (s *site) exportAll(nodes []node, sockets []string, writable bool) *exec.Cmd {
	on := map[bool]string{true: "on", false: "off"}[writable]
	var args []string
	for i, n := range nodes {
		n["node-name"] = fmt.Sprintf("disk%d", i)
		if !writable {
			n["read-only"] = true
		}
		text, err := json.Marshal(n)
		if err != nil {
			// a map of strings: does not happen, and QEMU would refuse it
			text = []byte(err.Error())
		}
		export := fmt.Sprintf("type=vhost-user-blk,id=export%d,node-name=disk%d,writable=%s,"+
			"addr.type=unix,addr.path=%s", i, i, on, sockets[i])
		if s.iothread {
			args = append(args, "--object", fmt.Sprintf("iothread,id=io%d", i))
			export += fmt.Sprintf(",iothread=io%d", i)
		}
		args = append(args, "--blockdev", string(text), "--export", export)
	}
	return exec.Command(s.qsd, args...)
}

// createImage makes a qcow2 image over another one, or over the raw base.
func (s *site) createImage(ctx context.Context, path, below string) error {
	format := "qcow2"
	if below == s.base() {
		format = "raw"
	}
	return tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", format, path)
}

// chainDepths are the depths of the qcow2 chains.
var chainDepths = [...]int{1, 8, 32}

// makeChains makes the images and serves them: chains in which each image but the top owns the
// extents that cowblk's layers own, and an overlay that owns everything in the area.
func (s *site) makeChains(ctx context.Context) error {
	var images []string
	below := s.base()
	for n := 1; n < chainDepths[len(chainDepths)-1]; n++ {
		image := s.path(fmt.Sprintf("image%d.qcow2", n))
		if err := s.createImage(ctx, image, below); err != nil {
			return err
		}
		args := []string{"-f", "qcow2"}
		for _, x := range layerExtents(n, s.size) {
			args = append(args, "-c", fmt.Sprintf("write -q -P %d %d %d", n, x.offset, x.length))
		}
		if err := tool(ctx, "qemu-io", append(args, image)...); err != nil {
			return err
		}
		images = append(images, image)
		below = image
	}
	for _, n := range chainDepths {
		key := report.Chain(n)
		if err := s.makeChain(ctx, key, images[:n-1]); err != nil {
			return err
		}
	}
	if err := s.makeChain(ctx, report.QcowHead, nil); err != nil {
		return err
	}
	if err := fill(ctx, s.servers[report.QcowHead].Socket, extent{0, s.area}); err != nil {
		return fmt.Errorf("filling a qcow2 overlay: %w", err)
	}
	return nil
}

// makeChain puts a new top on images and serves it.
func (s *site) makeChain(ctx context.Context, key string, images []string) error {
	below := s.base()
	if len(images) > 0 {
		below = images[len(images)-1]
	}
	top := s.path(key + ".qcow2")
	if err := s.createImage(ctx, top, below); err != nil {
		return err
	}
	all := append(append([]string{}, images...), top)
	return s.startServer(ctx, key, s.export(chainNode(s.base(), all), true))
}
