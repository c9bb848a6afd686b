package layer

import (
	"bytes"
	"os"

	"cowblk/cow/vfs"
)

// LegacyLiveFile reports whether name is a live file that an older cowblk made in this run of the
// kernel: its form of the shared map, on the store's own file system, which is not used any more.
// Its header is "COWBLK\x00V", a UUID, device and inode (64 bits each), and the name of the run of
// the kernel. A file that cannot be read counts as one.
func LegacyLiveFile(fsys vfs.FS, name, boot string) bool {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return true
	}
	defer f.Close()
	var p [SectorSize]byte
	if n, err := f.ReadAt(p[:], 0); n < len(p) {
		return !isEOF(err)
	}
	const bootAt = 8 + 16 + 8 + 8
	return bytes.HasPrefix(p[:], []byte("COWBLK\x00V")) && bytes.HasPrefix(p[bootAt:], []byte(boot))
}
