package cow_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"cowblk/cow"
	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// check ends an example on an error.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// newHead makes the files of an empty layer.
func newHead(dir, name string, p layer.CreateParams) layer.Paths {
	paths := layer.Paths{Map: filepath.Join(dir, name+".map"), Data: filepath.Join(dir,
		name+".data")}
	head, err := layer.CreateHead(vfs.OS{}, paths, p)
	check(err)
	check(head.Close())
	return paths
}

// A stack of a base and one head: a read finds what was written, or else the base.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	check(err)
	defer os.RemoveAll(dir)

	base := filepath.Join(dir, "base")
	check(os.WriteFile(base, append([]byte("from the base"), make([]byte, 1<<20-13)...), 0o600))
	f, err := vfs.OS{}.OpenFile(base, os.O_RDONLY, 0)
	check(err)
	fingerprint, err := layer.ComputeFingerprint(f, 0, 1<<20)
	check(err)
	check(f.Close())
	head := newHead(dir, "head", layer.CreateParams{Size: 1 << 20, Base: fingerprint,
		BaseSize: 1 << 20})

	disk, err := cow.Open(cow.Spec{Base: &cow.BaseSpec{Path: base}, Layers: []layer.Paths{head}},
		cow.Options{})
	check(err)
	defer disk.Close()
	_, err = disk.WriteAt([]byte("from the head"), 64<<10)
	check(err)
	check(disk.Flush())
	text := make([]byte, 13)
	for _, offset := range []int64{0, 64 << 10} {
		_, err = disk.ReadAt(text, offset)
		check(err)
		fmt.Printf("%s\n", text)
	}
	// Output:
	// from the base
	// from the head
}

// A promotion seals what the disk holds and goes on in a new head. Requests wait for microseconds.
func ExampleDisk_Promote() {
	dir, err := os.MkdirTemp("", "example")
	check(err)
	defer os.RemoveAll(dir)
	head := newHead(dir, "first", layer.CreateParams{Size: 1 << 20})
	disk, err := cow.Open(cow.Spec{Layers: []layer.Paths{head}}, cow.Options{})
	check(err)
	defer disk.Close()

	top := disk.Layers()[0]
	next := newHead(dir, "second", layer.CreateParams{Size: top.Size, BlockSize: top.BlockSize,
		Parent: top.UUID})
	l, err := layer.Open(vfs.OS{}, next, layer.OpenParams{Write: true})
	check(err)
	promotion, err := disk.Promote(l)
	check(err)
	// waits until the former head is durable and sealed
	check(promotion.Sealed(context.Background()))
	for _, h := range disk.Layers() {
		fmt.Println(h.State)
	}
	// Output:
	// sealed
	// head
}
