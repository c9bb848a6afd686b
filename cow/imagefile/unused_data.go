package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// unusedEnds is how much of the data of a new layer is read at its start and at its end, in bytes.
const unusedEnds = 1 << 20

// CheckUnused refuses size bytes from off on as the data of a layer that is formatted anew, if they
// seem to hold something: if the file has a known format, or the first or last MiB is not zeros.
func CheckUnused(fsys vfs.FS, path string, off, size int64) error {
	f, err := vfs.OpenImage(fsys, path, os.O_RDONLY)
	if err != nil {
		return Refused("data of the table", path, err)
	}
	defer f.Close()
	refuse := func(found string) error {
		return finding.New(nil, path, "content of the data",
			"nothing, or zeros, below a map that is formatted", found,
			"name another file or device; --force overwrites what is in this one")
	}
	format, err := probe(f)
	if err != nil {
		return err
	}
	id, err := f.Identity()
	if err != nil {
		return err
	}
	// On a device another disk's guest may have written it, in a range before this one.
	if format.name != Raw && (off == 0 || !id.Block && !format.disk) {
		return refuse(format.name)
	}
	length, err := f.Size()
	if err != nil {
		return err
	}
	end := min(off+size, length)
	for _, start := range slices.Compact([]int64{off, max(off, end-unusedEnds)}) {
		if start >= end {
			break
		}
		p := make([]byte, min(unusedEnds, end-start))
		if _, err := f.ReadAt(p, start); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if start == off {
			if name := diskContent(p); name != "" {
				return refuse(name)
			}
		}
		if i := bytes.IndexFunc(p, func(r rune) bool { return r != 0 }); i >= 0 {
			return refuse(fmt.Sprintf("something else at offset %d", start+int64(i)))
		}
	}
	return nil
}

// diskContent names common content of raw disks and partitions by its magic; empty: unknown.
func diskContent(p []byte) string {
	for _, c := range []struct {
		off         int
		magic, name string
	}{
		{512, "EFI PART", "a GPT partition table"},
		{1080, "\x53\xef", "an ext2, ext3 or ext4 file system"},
		{0, "XFSB", "an XFS file system"},
		{65600, "_BHRfS_M", "a btrfs file system"},
		{3, "NTFS    ", "an NTFS file system"},
		{512, "LABELONE", "an LVM physical volume"},
		{4096, "\xfc\x4e\x2b\xa9", "a member of a Linux RAID"},
		{4086, "SWAPSPACE2", "swap"},
		{510, "\x55\xaa", "a boot sector or a partition table"},
	} {
		if c.off < len(p) && bytes.HasPrefix(p[c.off:], []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}
