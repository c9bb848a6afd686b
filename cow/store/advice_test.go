package store

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/cow/imagefile"
	"cowblk/internal/test"
)

// An advised conversion of one image of a chain names the image that the user has named, wherever
// the fault is. An image made of a file below would lack the content of the files above.
func TestAdviceNamesTop(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write(t, path("raw"), noise(1, 1<<20))
	overlay(t, path("vmdk-mid"), "x.vmdk", "vmdk")
	overlay(t, path("nbd-mid"), "nbd:localhost:1", "raw")
	overlay(t, path("deep-0"), "raw", "raw")
	for i := range imagefile.MaxBacking + 3 {
		overlay(t, path(fmt.Sprint("deep-", i+1)), fmt.Sprint("deep-", i), "qcow2")
	}
	// An unknown incompatible feature.
	unknown := buildQcow2(qcow2File{clusterBits: 16, size: 1 << 20, data: noise(7, 65536)})
	binary.BigEndian.PutUint64(unknown[72:], 1<<40)
	write(t, path("unknown"), unknown)
	overlay(t, path("over-unknown"), "unknown", "qcow2")
	for _, under := range []string{"vmdk-mid", "nbd-mid",
		fmt.Sprint("deep-", imagefile.MaxBacking+3), "unknown", "over-unknown"} {
		top := overlay(t, path("top.qcow2"), under, "qcow2")
		for _, backing := range []bool{true, false} {
			_, err := newStore(t).Import(ctx, top, "img", ImportOptions{Backing: backing})
			want := "qemu-img convert -O qcow2 " + top + " " + top + ".new.qcow2"
			if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(),
				"convert") != 1 {
				t.Errorf("top over %s, with leave %t: error %v, want one with %q", under, backing,
					err, want)
			}
		}
	}
}

// An advised command does not overwrite a file that exists.
func TestAdviceOverwritesNothing(t *testing.T) {
	dir := t.TempDir()
	vmdk := write(t, filepath.Join(dir, "a.vmdk"), append([]byte("KDMV"), make([]byte, 1020)...))
	xz := write(t, filepath.Join(dir, "a.xz"), append([]byte("\xfd7zXZ\x00"),
		make([]byte, 1018)...))
	mid := overlay(t, filepath.Join(dir, "top"), "nbd:localhost:1", "raw")
	write(t, vmdk+".new.qcow2", nil)
	write(t, vmdk+".new.raw", nil)
	write(t, mid+".new.qcow2", nil)
	test.Must(t, os.Mkdir(vmdk+".new-2.qcow2", 0o755))
	test.Must(t, os.Symlink("nowhere", xz+".unpacked"))
	s := newStore(t)
	for path, want := range map[string]string{
		vmdk: vmdk + " " + vmdk + ".new-3.qcow2",
		xz:   ">" + xz + ".unpacked-2",
		mid:  mid + " " + mid + ".new-2.qcow2",
	} {
		_, err := s.Import(ctx, path, "img", ImportOptions{Backing: true})
		if err == nil || !strings.Contains(err.Error()+"\n", want+"\n") {
			t.Errorf("import of %s: %v, want advice with %q", path, err, want)
		}
		if path == mid {
			continue
		}
		_, create := s.Create(ctx, "vm1", CreateOptions{Base: path})
		want = strings.ReplaceAll(want, "-3.qcow2", "-2.raw") // these commands read only raw images
		for what, err := range map[string]error{"create": create,
			"serve --raw": imagefile.CheckRaw(path, "--format raw")} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of %s: %v, want advice with %q", what, path, err, want)
			}
		}
	}
}
