package scale

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"cowblk/integration/bench/mountns"
)

const (
	gib = int64(1) << 30
	tib = int64(1) << 40
)

// build is a cowblk binary.
type build struct{ name, binary string }

// settings holds the command line's options.
type settings struct {
	builds []build
	dir    string // on the XFS
	rounds int
}

// axis is a quantity that grows.
type axis struct {
	name  string
	sizes []int64
	text  func(int64) string
	make  func(c *client, size int64) error // makes the store with the tag golden@t0
}

// Main parses the command line and measures until ctx is done.
func Main(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("scale", flag.ExitOnError)
	var s settings
	before := fs.String("before", "", "a cowblk `BINARY` to compare with")
	after := fs.String("after", "cowblk", "the cowblk `BINARY` in question")
	dir := fs.String("dir", os.TempDir(), "`DIRECTORY` for the sparse file with the XFS")
	image := fs.Int64("image", 60*gib, "`BYTES` of the sparse file")
	disks := fs.String("disks", "10,100,1000", "numbers of disks, a `LIST` separated by commas")
	tags := fs.String("tags", "1,30,1000", "numbers of tags, a `LIST` separated by commas")
	fs.IntVar(&s.rounds, "rounds", 3, "how often each command is timed")
	_ = fs.Parse(args) // exits on an error
	for _, b := range []build{{"before", *before}, {"after", *after}} {
		if b.binary != "" {
			s.builds = append(s.builds, b)
		}
	}
	return run(ctx, &s, *dir, *image, *disks, *tags)
}

func run(ctx context.Context, s *settings, dir string, image int64, disks,
	tags string) (err error) {
	if err := mountns.Enter(); err != nil {
		return err
	}
	for i := range s.builds {
		if s.builds[i].binary, err = filepath.Abs(s.builds[i].binary); err != nil {
			return err
		}
	}
	axes := []axis{
		{name: "disks in the store", text: plain, make: func(c *client, n int64) error {
			return c.disks(n)
		}},
		{name: "tags of the cloned disk", text: plain, make: func(c *client, n int64) error {
			return c.tags(n)
		}},
		{name: "size of the disk", sizes: []int64{gib, tib, 64 * tib}, text: sizeText,
			make: func(c *client, size int64) error { return c.golden(size) }},
	}
	for i, list := range []string{disks, tags} {
		for _, word := range strings.Split(list, ",") {
			n, err := strconv.ParseInt(word, 10, 64)
			if err != nil || n < 1 {
				return fmt.Errorf("%q: expected a number above 0", word)
			}
			axes[i].sizes = append(axes[i].sizes, n)
		}
	}
	v, err := mountXFS(ctx, dir, image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.remove()) }()
	s.dir = v.dir
	for _, a := range axes {
		if err := measure(ctx, s, &a); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

// volume is a mounted XFS.
type volume struct{ image, dir string }

func mountXFS(ctx context.Context, dir string, size int64) (*volume, error) {
	tmp, err := os.MkdirTemp(dir, "cowblk-scale-")
	if err != nil {
		return nil, err
	}
	v := &volume{image: tmp, dir: filepath.Join(tmp, "xfs")}
	file := filepath.Join(tmp, "image")
	err = errors.Join(os.Mkdir(v.dir, 0o755), os.WriteFile(file, nil, 0o600),
		os.Truncate(file, size))
	if err == nil {
		err = command(ctx, "mkfs.xfs", "-q", file)
	}
	if err == nil {
		err = command(ctx, "mount", "-o", "loop", file, v.dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	return v, nil
}

func (v *volume) remove() error {
	return errors.Join(command(context.Background(), "umount", v.dir), os.RemoveAll(v.image))
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
