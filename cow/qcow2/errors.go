package qcow2

import (
	"errors"

	"cowblk/cow/finding"
)

// One sentinel per action that a person can take. Each finding of this package wraps
// one; it does not name the file.
var (
	// ErrFormat: the file does not begin with the magic of a qcow2 image.
	ErrFormat = errors.New("no qcow2 image")
	// ErrDamaged: a field or a table contradicts the format.
	ErrDamaged = errors.New("damaged qcow2 image")
	// ErrTruncated: the file ends before something that its header or a table points to.
	ErrTruncated = errors.New("truncated qcow2 image")
	// ErrCorrupt: QEMU has marked the image as corrupt (incompatible feature bit 1).
	ErrCorrupt = errors.New("qcow2 image marked corrupt")
	// ErrDirty: the image was not closed in order, so its refcounts may be wrong (incompatible
	// feature bit 0).
	ErrDirty = errors.New("qcow2 image not closed in order")
	// ErrEncrypted: the content is encrypted.
	ErrEncrypted = errors.New("encrypted qcow2 image")
	// ErrDataFile: the content is in another file (incompatible feature bit 2).
	ErrDataFile = errors.New("qcow2 image with an external data file")
	// ErrUnsupported: unknown version, feature or compression.
	ErrUnsupported = errors.New("unsupported qcow2 image")
)

func damaged(what, expected, found string) error {
	return finding.New(ErrDamaged, "", what, expected, found, "")
}
