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

// sharedMinFree is the space that a directory of shared maps should have, in bytes: a disk needs up
// to 256 KiB.
const sharedMinFree = 1 << 20

// SharedDirs returns the directories for shared maps of this user's processes, in order of
// preference. The first is in the store's run directory, which need not be in memory.
func (s *Store) SharedDirs() []string {
	var dirs []string
	if !within(ownMemoryDir(), s.runDir) { // else the last one is the same
		dirs = append(dirs, filepath.Join(s.runDir, sharedMapsDir))
	}
	if d := userRunDir(s.getenv); d != "" {
		dirs = append(dirs, filepath.Join(d, sharedMapsDir))
	}
	return append(dirs, ownMemoryDir())
}

// sharedDir returns the first usable directory of SharedDirs. Other processes find it in the header
// of the head.
func (s *Store) sharedDir() (string, error) {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok {
		return "", errors.ErrUnsupported
	}
	full := "" // the first usable one without enough space
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
			s.log.Warn("unflushed writes that an older cowblk kept are discarded", "disk", m.Name, "file", path)
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
		if layer.LegacyLiveFile(s.fs, path, boot) {
			return fmt.Errorf("%s: %w: an older cowblk was killed, which kept there what its guest had not flushed\nserve disk %q with that version and stop it in order (SIGTERM); or, if the guest was restarted since, or its last writes may be lost as at a power cut, serve the disk with --drop-unflushed",
				path, layer.ErrUnflushed, name)
		}
	}
	return nil
}
