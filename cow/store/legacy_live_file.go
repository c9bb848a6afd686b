package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// legacyLiveFile returns the path of a file in which earlier versions kept unflushed writes, in the
// directory of a disk.
func (s *Store) legacyLiveFile(disk string, id uuid.UUID) string {
	return s.path(disksDir, disk, "live-"+id.String())
}

// removeLegacyLiveFiles removes the files of an earlier version from the directory of a disk that
// is open for writing. That version must not use them if it opens the disk again.
func (s *Store) removeLegacyLiveFiles(m *Manifest) {
	for _, l := range m.Layers {
		path := s.legacyLiveFile(m.Name, l.UUID)
		if exists, err := s.exists(path); err == nil && exists {
			s.log.Warn("unflushed writes that an older cowblk kept are discarded", "disk", m.Name,
				"file", path)
			if err := s.fs.Remove(path); err != nil {
				s.log.Warn("a file of an older cowblk could not be removed", "err", err)
			}
		}
	}
}

// refuseLegacyLiveFile refuses a layer that a process of cowblk 0.x served and that died since the
// machine was booted: only that version can read the unflushed writes of its guest.
func (s *Store) refuseLegacyLiveFile(m *Manifest, id uuid.UUID, what layer.Unflushed) error {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok || what == layer.DropUnflushed {
		return nil
	}
	disks := []string{m.Name}
	if id != m.Head().UUID {
		// It may have been the head of another disk, perhaps with an unreadable manifest: the file
		// name has the layer's UUID.
		var err error
		if disks, err = s.DiskNames(); err != nil {
			return err
		}
	}
	for _, name := range disks {
		path := s.legacyLiveFile(name, id)
		if exists, err := s.exists(path); err != nil {
			return err
		} else if !exists {
			continue
		}
		boot, err := sfs.Boot()
		if err != nil {
			return err
		}
		if isLegacyLiveFile(s.fs, path, boot) {
			return fmt.Errorf(
				"%s: %w: an older cowblk was killed, which kept there what its guest had not flushed\nserve disk %q with that version and stop it in order (SIGTERM); or, if the guest was restarted since, or its last writes may be lost as at a power cut, serve the disk with --drop-unflushed",
				path, layer.ErrUnflushed, name)
		}
	}
	return nil
}

// isLegacyLiveFile reports whether name is a live file that an older cowblk made in this run of the
// kernel: its form of the shared map, on the store's own file system, which is not used any more.
// Its header is "COWBLK\x00V", a UUID, device and inode (64 bits each), and the name of the run of
// the kernel. A file that cannot be read counts as one.
func isLegacyLiveFile(fsys vfs.FS, name, boot string) bool {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return true
	}
	defer f.Close()
	var p [layer.SectorSize]byte
	if n, err := f.ReadAt(p[:], 0); n < len(p) {
		return !errors.Is(err, io.EOF)
	}
	const bootAt = 8 + 16 + 8 + 8
	return bytes.HasPrefix(p[:], []byte("COWBLK\x00V")) && bytes.HasPrefix(p[bootAt:], []byte(boot))
}
