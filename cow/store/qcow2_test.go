package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

func needQEMUTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: qemu-utils), which writes the images; make deps installs it", tool)
		}
	}
}

// toolIn returns a function that runs a command in dir; a failure ends the test.
func toolIn(t *testing.T, dir string) func(name string, args ...string) {
	return func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
}

// An image with preallocated clusters refers to holes of its file for the whole disk. They are not
// read: not in the image, not in one above it, and not for the file below it.
func TestPreallocatedQcow2(t *testing.T) {
	needQEMUTools(t)
	const size, data = 64 << 20, 1 << 20
	for _, options := range []string{
		"preallocation=metadata", "preallocation=falloc", "preallocation=metadata,cluster_size=4k",
		"preallocation=metadata,extended_l2=on", "preallocation=falloc,extended_l2=on",
	} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			tool := toolIn(t, dir)
			write(t, filepath.Join(dir, "base"), bytes.Repeat([]byte{9}, 8<<20))
			tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "image",
				fmt.Sprint(size))
			if strings.Contains(options, "extended_l2") {
				// QEMU preallocates no subclusters. Written zeros become holes of the copy.
				tool("qemu-io", "-f", "qcow2", "-c", "write -P 0 0 64M", "image")
				tool("cp", "--sparse=always", "image", "copy")
				tool("mv", "copy", "image")
			}
			tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 20M 1M", "image")
			tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "image", "-F", "qcow2", "above")
			tool("cp", "--sparse=always", "image", "covering")
			tool("qemu-img", "rebase", "-u", "-b", "base", "-F", "raw", "covering")
			want := make([]byte, size)
			copy(want[20<<20:], bytes.Repeat([]byte{7}, data))
			for _, name := range []string{"image", "above", "covering"} {
				s := newStore(t)
				read, _ := countReads(s)
				if _, err := s.Import(context.Background(), filepath.Join(dir, name), "x",
					ImportOptions{Backing: true}); err != nil {
					t.Fatal(err)
				}
				// The tables, the data once to copy and once to verify, and samples for the
				// fingerprint.
				if n := read.Load(); n > 8<<20 {
					t.Errorf("%s: %d bytes read for %d of data", name, n, data)
				}
				got, err := os.ReadFile(s.ImageData("x"))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: content differs from what QEMU wrote", name)
				}
			}
		})
	}
}

// Chains written by QEMU, with all kinds of clusters, read as QEMU reads them.
func TestQcow2AgainstQEMU(t *testing.T) {
	needQEMUTools(t)
	options := []string{
		"cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M", "compat=0.10",
		"extended_l2=on,cluster_size=16k",
		"extended_l2=on,cluster_size=128k", "preallocation=metadata", "preallocation=falloc",
		"extended_l2=on,cluster_size=64k,preallocation=metadata", "lazy_refcounts=on",
	}
	const size = 8 << 20
	for seed, top := range options {
		t.Run(top, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(seed), 15))
			dir := t.TempDir()
			tool := toolIn(t, dir)
			// scribble writes, zeroes and discards ranges of all alignments.
			scribble := func(file string, size int) {
				var args []string
				for range 40 {
					off := rng.IntN(size/512) * 512
					n := min(size-off, (1+rng.IntN(1<<(rng.IntN(11))))*512)
					op := []string{"write -P %d %d %d", "write -P %d %d %d", "write -z %[2]d %[3]d",
						"write -z -u %[2]d %[3]d", "discard %[2]d %[3]d"}[rng.IntN(5)]
					args = append(args, "-c", strings.SplitN(fmt.Sprintf(op, 1+rng.IntN(255), off,
						n), "%!", 2)[0])
				}
				tool("qemu-io", append(append([]string{"-f", "qcow2"}, args...), file)...)
			}
			// The bottom ends before the others, in the middle of a cluster. Parts of the middle
			// one are compressed.
			write(t, filepath.Join(dir, "bottom"), noise(uint64(seed), 5<<20+1536))
			under := options[rng.IntN(len(options))]
			if strings.Contains(under, "preallocation") {
				under = "cluster_size=4k" // not with a backing file
			}
			tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", under, "-b", "bottom", "-F",
				"raw", "mid", fmt.Sprint(size-1<<20))
			scribble("mid", size-1<<20)
			tool("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=32k", "-B",
				"bottom", "-F", "raw", "mid", "mid2")
			if strings.Contains(top, "preallocation") {
				tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", top, "top", fmt.Sprint(size))
			} else {
				tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", top, "-b", "mid2", "-F",
					"qcow2", "top", fmt.Sprint(size))
			}
			scribble("top", size)
			s := newStore(t)
			for _, name := range []string{"top", "mid", "mid2"} {
				tool("qemu-img", "convert", "-O", "raw", name, name+".raw")
				test.Must(t, test.Err(s.Import(ctx, filepath.Join(dir, name), name,
					ImportOptions{Backing: true})))
				want := readFile(t, filepath.Join(dir, name+".raw"))
				got, err := os.ReadFile(s.ImageData(name))
				test.Must(t, err)
				if !bytes.Equal(got, want) {
					at := 0
					for at < min(len(got), len(want)) && got[at] == want[at] {
						at++
					}
					t.Errorf("%s: %d bytes, QEMU reads %d; different from byte %d on", name,
						len(got), len(want), at)
				}
			}
		})
	}
}
