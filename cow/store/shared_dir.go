package store

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// sharedMapsDir is the directory of shared maps in a run directory.
const sharedMapsDir = "unflushed"

// sharedMinFree is how much room a directory of shared maps should have, in bytes: of a disk up to 256 KiB.
const sharedMinFree = 1 << 20

// SharedDirs are the directories in which this user's processes may keep shared maps, in the order in which they are
// tried: the store's run directory first, which a store of one's own has on a disk.
func (s *Store) SharedDirs() []string {
	var dirs []string
	if !within(ownMemoryDir(), s.runDir) { // else it is the last one
		dirs = append(dirs, filepath.Join(s.runDir, sharedMapsDir))
	}
	if d := userRunDir(s.getenv); d != "" {
		dirs = append(dirs, filepath.Join(d, sharedMapsDir))
	}
	return append(dirs, ownMemoryDir())
}

// sharedDir is the first of SharedDirs that can be had. Which one it is does not matter to others: the header of a head
// names it.
func (s *Store) sharedDir() (string, error) {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok {
		return "", errors.ErrUnsupported
	}
	full := "" // the first one that can be had and has no room
	var errs []error
	for _, dir := range s.SharedDirs() {
		err := sfs.MakeSharedDir(dir)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if host, ok := s.fs.(vfs.HostFS); ok {
			if free, err := host.Free(dir); err == nil && free < sharedMinFree {
				if full == "" {
					full = dir
				}
				continue
			}
		}
		return dir, nil
	}
	if full != "" {
		return full, nil
	}
	return "", errors.Join(errs...)
}

// legacyLiveFile is where an older cowblk kept what a guest had not flushed, in the directory of a disk.
func (s *Store) legacyLiveFile(disk string, id uuid.UUID) string {
	return s.path(disksDir, disk, "live-"+id.String())
}

// removeLegacyLiveFiles removes what an older cowblk has left beside a disk that is open for writing, so that it does not
// believe it if it has the disk once more.
func (s *Store) removeLegacyLiveFiles(m *Manifest) {
	for _, l := range m.Layers {
		path := s.legacyLiveFile(m.Name, l.UUID)
		if there, err := s.exists(path); err == nil && there {
			s.log.Warn("what an older cowblk kept of unflushed writes is given up", "disk", m.Name, "file", path)
			if err := s.fs.Remove(path); err != nil {
				s.log.Warn("a file of an older cowblk is left over", "err", err)
			}
		}
	}
}

// refuseLegacyLiveFile refuses a layer that a process of cowblk 0.x served which died in this run of the kernel: what its guest
// had not flushed is in a file that only such a version reads.
func (s *Store) refuseLegacyLiveFile(m *Manifest, id uuid.UUID, what layer.Unflushed) error {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok || what == layer.DropUnflushed {
		return nil
	}
	disks := []string{m.Name}
	if id != m.Head().UUID {
		// Another disk may have had it as its head, also one whose manifest cannot be read: the file's name says it.
		var err error
		if disks, err = s.DiskNames(); err != nil {
			return err
		}
	}
	for _, name := range disks {
		path := s.legacyLiveFile(name, id)
		if there, err := s.exists(path); err != nil {
			return err
		} else if !there {
			continue
		}
		boot, err := sfs.Boot()
		if err != nil {
			return err
		}
		if layer.LegacyLiveFile(s.fs, path, boot) {
			return fmt.Errorf("%s: %w: an older cowblk was killed, which kept there what its guest had not flushed\nserve disk %q with that version and stop it in order (SIGTERM); or, if the guest was restarted since, or its last writes may be lost as at a power cut, serve the disk with --drop-unflushed",
				path, layer.ErrUnflushed, name)
		}
	}
	return nil
}
