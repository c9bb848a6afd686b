package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// A directory is a store only with evidence, because cowblk removes what is in tmp/ of a store and restricts
// modes there: other programs have a file named lock, and directories named tmp, images or index, too. It is one if its
// lock is a regular file of this user, and
//
//   - the lock says so, or
//   - it holds a manifest, a description of an image or the map of a layer that can be decoded, or
//   - it holds nothing but names that a store has, and nothing in its images/, layers/ and disks/; and what is in tmp/ and
//     index/ is cowblk's own. That is a store that has been begun, or emptied.
//
// A lock file that is missing beside such a manifest and nothing foreign has been taken away by a power cut. Any other
// directory has to be empty to become a store. A foreign file in a store is left alone.

// lockMagic is the content of the lock file of a store that this version has made: evidence by itself. It need not be there:
// earlier versions have left the file empty, and a full file system or a power cut may.
const lockMagic = "cowblk store\n"

// lostFound is in the root of a file system of its own.
const lostFound = "lost+found"

// storeDirs are the directories of a store.
var storeDirs = []string{imagesDir, layersDir, disksDir, tmpDir, indexDir, reserveDir, "run"}

// recognize refuses a directory that is no store and may not become one: before anything in it is made, changed or
// removed. It is an ErrInvalid. What is found is kept for the life of the Store.
func (s *Store) recognize() error {
	if s.recognized.Load() {
		return nil
	}
	for {
		found, err := s.findForeign()
		if err != nil || found == "" {
			return err
		}
		// Another process may make the store at this moment, and a listing need not show what comes meanwhile.
		again, err := s.findForeign()
		if err != nil || again == "" {
			return err
		}
		if again == found {
			return invalidf("store %s: expected a store or an empty directory, found %s\nname a directory of its own", PathText(s.dir), found)
		}
	}
}

// findForeign returns what is foreign in a directory that is no store and may not become one; else the empty string.
func (s *Store) findForeign() (foreign string, err error) {
	entries, err := s.fs.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("store %s: %w", PathText(s.dir), err)
	}
	locked := false
	for _, e := range entries {
		switch name := e.Name(); {
		case name == lockFile:
			what, err := s.foreignLock(e)
			if what != "" || err != nil {
				return what, err
			}
			locked = true
		case name == lostFound:
		case slices.Contains(storeDirs, name) && (e.IsDir() || e.Type()&fs.ModeSymlink != 0):
		case foreign == "":
			foreign = PathText(name) + " in it"
		}
	}
	if locked && s.hasLockMagic() {
		s.recognized.Store(true)
		return "", nil
	}
	if locked || foreign == "" {
		real, err := s.holdsStoreObject()
		if err != nil {
			return "", err
		}
		if real {
			s.recognized.Store(locked)
			return "", nil
		}
	}
	if foreign == "" {
		foreign, err = s.foreignInEmpty(locked)
	}
	if foreign == "" && err == nil {
		s.recognized.Store(locked)
		return "", nil
	}
	if foreign != "" {
		foreign += ", and no disk, image or layer of a store that can be read"
	}
	return foreign, err
}

// hasLockMagic reports whether the lock file says what it is.
func (s *Store) hasLockMagic() bool {
	f, err := s.fs.OpenFile(s.path(lockFile), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	text := make([]byte, len(lockMagic))
	n, _ := f.ReadAt(text, 0)
	return string(text[:n]) == lockMagic
}

// foreignLock says what is wrong with the lock file of a directory: it is not of cowblk's kind, or of another user.
func (s *Store) foreignLock(e fs.DirEntry) (string, error) {
	if !e.Type().IsRegular() {
		return "a file named lock in it that is not a regular one", nil
	}
	if _, real := s.fs.(vfs.HostFS); !real {
		return "", nil
	}
	fi, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("store %s: %w", PathText(s.dir), err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return "", nil
	}
	// A group may share a store: its lock is whose the store is.
	dir, err := s.fs.Stat(s.dir)
	if err != nil {
		return "", fmt.Errorf("store %s: %w", PathText(s.dir), err)
	}
	if owner, ok := dir.Sys().(*syscall.Stat_t); ok && owner.Uid == st.Uid {
		return "", nil
	}
	return "a lock of user " + way.UserName(st.Uid) + " in it", nil
}

// holdsStoreObject reports whether the directory holds a layer, a disk or an image that can only be cowblk's. The first one will
// do, so the cost does not follow their number.
func (s *Store) holdsStoreObject() (bool, error) {
	for _, look := range []struct {
		dir string
		own func(name string) error
	}{
		{layersDir, func(name string) error {
			if !isUUID(name) {
				return fs.ErrNotExist
			}
			return s.checkMapMagic(s.path(layersDir, name, mapFile))
		}},
		{disksDir, func(name string) error {
			m := new(Manifest)
			return s.readDocument(s.path(disksDir, name, diskFile), m, func() error { return m.check(name) })
		}},
		{imagesDir, func(name string) error {
			m := new(Image)
			return s.readDocument(s.path(imagesDir, name, imageFile), m, func() error { return m.check(name) })
		}},
	} {
		for n := 8; ; n = 1 << 30 {
			names, err := s.fs.SomeNames(s.path(look.dir), n)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
				break
			}
			if err != nil {
				return false, fmt.Errorf("store %s: %w", PathText(s.dir), err)
			}
			for _, name := range names[:min(n, len(names))] {
				if look.dir != layersDir && CheckName("", name) != nil {
					continue
				}
				err := look.own(name)
				if err == nil {
					return true, nil
				}
				if !isDamage(err) {
					return false, fmt.Errorf("store %s: %w", PathText(s.dir), err)
				}
			}
			if len(names) < n {
				break
			}
		}
	}
	return false, nil
}

// checkMapMagic is nil for a file that begins as the map of a layer does, damaged or of a newer version though it may be.
func (s *Store) checkMapMagic(path string) error {
	_, err := layer.ReadHeader(s.fs, path)
	if errors.Is(err, layer.ErrDamaged) || errors.Is(err, layer.ErrUnsupported) {
		return nil
	}
	return err
}

// foreignInEmpty says what keeps a directory of nothing but a store's names from being one that has just been begun, or emptied.
// Without a lock file there can be directories at most, and sockets.
func (s *Store) foreignInEmpty(locked bool) (foreign string, err error) {
	for _, dir := range storeDirs {
		entries, err := s.fs.ReadDir(s.path(dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("store %s: %w", PathText(s.dir), err)
		}
		for _, e := range entries {
			own := false
			switch name := e.Name(); {
			case dir == "run":
				own = locked || e.Type()&fs.ModeSocket != 0
			case !locked:
			case dir == tmpDir && isTxnDir(e):
				strange, err := s.foreignInTxn(s.path(tmpDir, name))
				if err != nil {
					return "", err
				}
				own = strange == ""
			case dir == reserveDir:
				n, err := strconv.Atoi(name)
				own = err == nil && n >= 0 && len(name) == 2 && e.Type().IsRegular()
			case dir == indexDir:
				own = strings.TrimSuffix(name, vfs.TempSuffix) == indexFile
			}
			if !own {
				return PathText(dir+"/"+e.Name()) + " in it", nil
			}
		}
	}
	return "", nil
}

func isUUID(name string) bool {
	_, err := uuid.Parse(name)
	return err == nil && len(name) == len(uuid.Nil.String())
}
