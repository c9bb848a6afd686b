package imagefile

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// MaxBacking is the maximum number of backing files in a chain.
const MaxBacking = 64

// Backing is a backing file of an imported qcow2. Its content is part of the image.
type Backing struct {
	Path   string `json:"path"`   // absolute, without symbolic links; Go-quoted if it holds unprintable characters
	Format string `json:"format"` // Raw or Qcow2
}

func (b Backing) String() string { return b.Path + " (" + b.Format + ")" }

// openBacking opens the backing files from the top down. It checks and locks each file before it
// reads the content. Unless o.Backing is set it refuses the chain and lists the files.
func (src *Source) openBacking(fsys vfs.FS, o Options) error {
	for {
		c := src.chain[len(src.chain)-1]
		if c.img == nil || c.img.Backing == "" {
			break
		}
		below, err := src.openBelow(fsys, c, o)
		if err != nil {
			if !o.Backing {
				return src.needsBackingFlag(c, err)
			}
			return err
		}
		src.chain = append(src.chain, below)
	}
	if len(src.chain) > 1 && !o.Backing {
		return src.needsBackingFlag(nil, nil)
	}
	return nil
}

// openBelow opens the backing file of c.
func (src *Source) openBelow(fsys vfs.FS, c *chainFile, o Options) (*chainFile, error) {
	name := c.img.Backing
	refuse := func(what, expected, found, advice string) error {
		return finding.New(nil, c.path, what, expected, found, advice)
	}
	oneImage := "if what it names may become a guest's disk, make one image of all: " +
		flatten(fsys, src.Name)
	if len(src.chain) > MaxBacking {
		return nil, refuse("backing files", fmt.Sprintf("at most %d", MaxBacking), "more", oneImage)
	}
	path, ok := backingPath(c.path, name)
	if !ok {
		return nil, refuse("backing file", "the name of a file", strconv.Quote(name), oneImage)
	}
	driver := c.img.BackingFormat
	if driver != Raw && driver != Qcow2 {
		found, advice := strconv.Quote(driver), oneImage
		if driver == "" {
			found = "none"
			advice = "if you know it, raw or qcow2, enter it: qemu-img rebase -u -b " +
				shell.Path(name) + " -F FORMAT " + shell.Path(c.path)
		}
		return nil, refuse("format of the backing file "+shell.Text(path), "raw or qcow2", found,
			advice)
	}
	below, err := openChainFile(fsys, path, src.Name, o)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = finding.New(nil, path, "backing file of "+shell.Text(c.path), "a file", "none",
				"put it there; without it the image's content is not whole")
		}
		return nil, err
	}
	for _, above := range src.chain {
		if above.opened.SameFile(below.opened) {
			_ = below.close()
			return nil, refuse("backing file", "another file than those above it",
				shell.Text(path)+", which is "+shell.Text(above.path),
				"the chain has no bottom: put the right name back with qemu-img rebase -u")
		}
	}
	if err := below.open(driver); err != nil {
		_ = below.close()
		return nil, err
	}
	return below, nil
}

// backingPath resolves the name of a backing file as QEMU does: relative to the directory of the
// image. It returns false for a protocol name, which has a colon before the first slash (nbd:,
// json:, file:, ssh://).
func backingPath(image, name string) (string, bool) {
	first, _, _ := strings.Cut(name, "/")
	if strings.Contains(first, ":") {
		return "", false
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(image), name)
	}
	return name, true
}

// needsBackingFlag returns the refusal of an image with backing files. It lists the chain as far as
// it could be followed.
func (src *Source) needsBackingFlag(last *chainFile, err error) error {
	var b strings.Builder
	for _, c := range src.chain[1:] {
		fmt.Fprintf(&b, "%s, ", Backing{shell.Text(c.realPath), c.format})
	}
	if last != nil {
		fmt.Fprintf(&b, "%s, ", strconv.Quote(last.img.Backing))
	}
	advice := "what is in these files becomes part of the image, and a guest can read it. If they may: --backing"
	if err != nil {
		advice += "\nthat would fail here: " + err.Error()
	}
	return finding.New(nil, src.Name, "backing files", "none, or the word --backing",
		strings.TrimSuffix(b.String(), ", "), advice)
}
