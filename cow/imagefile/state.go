package imagefile

import (
	"fmt"
	"time"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// SameState compares the fields that a write changes. It ignores device and inode: a store may be
// copied.
func SameState(a, b vfs.Identity) bool {
	return a.Size == b.Size && a.MTime == b.MTime && a.Block == b.Block
}

// StateFinding says how a file differs from its recorded state.
func StateFinding(path string, was, is vfs.Identity, advice string) *finding.Finding {
	switch {
	case was.Block != is.Block:
		kind := map[bool]string{false: "a regular file", true: "a block device"}
		return finding.New(nil, path, "kind", kind[was.Block], kind[is.Block], advice)
	case was.Size != is.Size:
		return finding.New(nil, path, "size of the base", finding.Bytes(was.Size),
			finding.Bytes(is.Size), advice)
	}
	return finding.New(nil, path, "modification time of the base", timeText(was.MTime),
		timeText(is.MTime), advice)
}

func timeText(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

// CheckSystemUse returns a vfs.ErrSystemUses for a block device that the system uses. word is the
// option that accepts it; empty: none does.
func CheckSystemUse(fsys vfs.FS, path, word string) error {
	err := vfs.CheckSystemUse(fsys, path)
	if err == nil {
		return nil
	}
	advice := "unmount it, or end that use, first; or name another device"
	if word != "" {
		advice += "\nif you know that nothing changes it: " + word
	}
	return fmt.Errorf("%w\n%s", err, advice)
}
