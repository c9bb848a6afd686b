package imagefile

import (
	"errors"
	"fmt"

	"cowblk/cow/finding"
	"cowblk/cow/qcow2"
	"cowblk/cow/shell"
)

// qcow2Refusal adds the file's name and advice to an error of the qcow2 reader. It advises a
// conversion only if nothing is damaged: a conversion hides damage.
func (c *chainFile) qcow2Refusal(err error) error {
	var q *finding.Finding
	if !errors.As(err, &q) {
		return fmt.Errorf("%s: %w", shell.Text(c.path), err)
	}
	return finding.New(nil, c.path, "qcow2 image, "+q.What, q.Expected, q.Found,
		c.qcow2Advice(q.Err))
}

func (c *chainFile) qcow2Advice(err error) string {
	word := shell.Path(c.path)
	switch err {
	case qcow2.ErrFormat:
		return "this is no qcow2 image: see what it is (file " + word + "), and import it as that"
	case qcow2.ErrTruncated:
		return "the file was not copied to its end: copy or download it again, and compare its length or checksum with the original's"
	case qcow2.ErrCorrupt:
		return "QEMU has found its tables damaged, and what it holds cannot be trusted: restore the image from a backup.\n" +
			"Without one, try what qemu-img check -r all makes of a copy, and check the file systems in it; see first: qemu-img check " + word
	case qcow2.ErrDirty:
		return "it was not closed in order (or a QEMU uses it now). If nobody uses it, QEMU's own repair of the reference counts puts that right: qemu-img check -r all " + word
	case qcow2.ErrEncrypted:
		if c.path != c.top {
			return "make one image of " + shell.Path(c.top) +
				" and all under it with the key: qemu-img convert with --object secret and --image-opts, see qemu-img(1)"
		}
		return "decrypt it with the key first: qemu-img convert with --object secret and --image-opts, see qemu-img(1)"
	case qcow2.ErrDataFile:
		return "its content is in that other file: make one image of all, " + flatten(c.fsys,
			c.top) + ", if that file may become a guest's disk"
	case qcow2.ErrUnsupported:
		return "QEMU can write it without what cowblk does not know: " + flatten(c.fsys, c.top)
	}
	return "its tables or its header are damaged: restore it from a backup, or copy it again. See what QEMU says: qemu-img check " + word
}
