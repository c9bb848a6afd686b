package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// sharedName is the directory of shared maps in a run directory.
const sharedName = "unflushed"

// SharedDirs are the directories in which this user's processes may keep shared maps, in the order in which they are
// tried: the store's run directory first, which a store of one's own has on a disk.
func (s *Store) SharedDirs() []string {
	dirs := []string{filepath.Join(s.runDir, sharedName)}
	if uid := os.Geteuid(); uid == 0 {
		dirs = append(dirs, filepath.Join(systemRun, sharedName))
	} else {
		if d := s.getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
			dirs = append(dirs, filepath.Join(filepath.Clean(d), programDir, sharedName))
		}
		dirs = append(dirs, "/dev/shm/"+programDir+"-"+strconv.Itoa(uid))
	}
	return dirs
}

// sharedDir is the first of SharedDirs that can be had. Which one it is does not matter to others: the header of a head
// names it.
func (s *Store) sharedDir() (string, error) {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok {
		return "", errors.ErrUnsupported
	}
	var errs []error
	for _, dir := range s.SharedDirs() {
		err := sfs.MakeSharedDir(dir)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// checkLiveFiles refuses a layer that a process of cowblk 0.x served which died in this run of the kernel: what its guest
// had not flushed is in a file that only such a version reads.
func (s *Store) checkLiveFiles(m *Manifest, id uuid.UUID, what layer.Unflushed) error {
	sfs, ok := s.fs.(vfs.SharedFS)
	if !ok || what == layer.DropUnflushed {
		return nil
	}
	users, err := s.layerUsers()
	if err != nil {
		return err
	}
	for _, name := range append(users[id], m.Name) {
		path := s.path(disksDir, name, "live-"+id.String())
		if there, err := s.exists(path); err != nil {
			return err
		} else if !there {
			continue
		}
		boot, err := sfs.Boot()
		if err != nil {
			return err
		}
		if layer.LiveFileOf(s.fs, path, boot) {
			return fmt.Errorf("%s: %w: an older cowblk served layer %s and was killed, and %s has what its guest had not flushed\nserve disk %q with that version and stop it there in order (SIGTERM); or, if the guest was restarted since or its last writes may be lost as at a power cut, open the disk with --drop-unflushed",
				path, layer.ErrUnflushed, id, path, name)
		}
	}
	return nil
}
