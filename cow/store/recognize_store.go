package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"cowblk/cow/finding"
	"cowblk/cow/shell"
	"cowblk/cow/vfs"
	"cowblk/cow/way"
)

// cowblk removes files in tmp/ of a store and restricts modes in it, so it must not take another
// directory for a store: other programs also have a file named lock and directories named tmp,
// images or index. A directory is a store if its lock is a regular file of this user and
//
//   - the lock file has the content lockMagic, or
//   - it contains a readable manifest, image description or map of a layer, or
//   - all names in it are those of a store, the lock file has no other content, images/, layers/
//     and disks/ are empty, tmp/, index/ and reserve/ contain only files of cowblk, by their
//     content, and run/ contains something only beside layers/ and disks/: a new or emptied store.
//
// If the lock file is missing beside a readable document and nothing is foreign, a power cut has
// lost it. Any other directory must be empty to become a store. Foreign files in a store are left
// alone.

// lockMagic is the content of the lock file of a store that this version created. It may be
// missing: earlier versions left the file empty, and so may a full file system or a power cut.
const lockMagic = "cowblk store\n"

// lostAndFound is in the root of a file system.
const lostAndFound = "lost+found"

// storeDirs are the directories of a store.
var storeDirs = []string{imagesDir, layersDir, disksDir, tmpDir, indexDir, reserveDir, "run"}

// recognize refuses a directory that is not a store and may not become one, before anything in it
// is created, changed or removed. It is an ErrInvalid. A positive result is remembered.
func (s *Store) recognize() error {
	if s.recognized.Load() {
		return nil
	}
	for {
		found, err := s.findForeign()
		if err != nil || found == "" {
			return err
		}
		// Another process may be creating the store, and a listing may miss new entries.
		again, err := s.findForeign()
		if err != nil || again == "" {
			return err
		}
		if again == found {
			return finding.Invalidf(
				"store %s: expected a store or an empty directory, found %s\nname a directory of its own", shell.Text(s.dir), found)
		}
	}
}

// findForeign returns a foreign entry of a directory that is not a store and may not become one;
// else the empty string.
func (s *Store) findForeign() (foreign string, err error) {
	entries, err := s.fs.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
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
		case name == lostAndFound:
		case slices.Contains(storeDirs, name) && (e.IsDir() || e.Type()&fs.ModeSymlink != 0):
		case foreign == "":
			foreign = shell.Text(name) + " in it"
		}
	}
	text := lockUnknown
	if locked {
		if text, err = s.readLockText(); err != nil {
			return "", err
		}
	}
	if text == lockOwn {
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
	if foreign == "" && text == lockOther {
		foreign = "a lock with other content in it"
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

// foreignLock says why a lock file is not cowblk's: its type or its owner; empty: it may be.
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
		return "", fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return "", nil
	}
	// A group may share a store: accept the owner of the directory.
	dir, err := s.fs.Stat(s.dir)
	if err != nil {
		return "", fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
	}
	if owner, ok := dir.Sys().(*syscall.Stat_t); ok && owner.Uid == st.Uid {
		return "", nil
	}
	return "a lock of user " + way.UserName(st.Uid) + " in it", nil
}

// holdsStoreObject reports whether the directory contains a layer, disk or image of cowblk. It
// stops at the first one, so the cost does not depend on their number.
func (s *Store) holdsStoreObject() (bool, error) {
	for _, kind := range []struct {
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
			return s.readDocument(s.path(disksDir, name, diskFile), m,
				func() error { return m.check(name) })
		}},
		{imagesDir, func(name string) error {
			m := new(Image)
			return s.readDocument(s.path(imagesDir, name, imageFile), m,
				func() error { return m.check(name) })
		}},
	} {
		for n := 8; ; n = 1 << 30 {
			names, err := s.fs.SomeNames(s.path(kind.dir), n)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
				break
			}
			if err != nil {
				return false, fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
			}
			for _, name := range names[:min(n, len(names))] {
				if kind.dir != layersDir && CheckName("", name) != nil {
					continue
				}
				err := kind.own(name)
				if err == nil {
					return true, nil
				}
				if !isDamage(err) {
					return false, fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
				}
			}
			if len(names) < n {
				break
			}
		}
	}
	return false, nil
}

// foreignInEmpty returns an entry that a new or emptied store does not have. Without a lock file
// there may only be directories and sockets.
func (s *Store) foreignInEmpty(locked bool) (foreign string, err error) {
	for _, dir := range storeDirs {
		entries, err := s.readDir(s.path(dir))
		if err != nil {
			return "", fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
		}
		for _, e := range entries {
			own := false
			switch name := e.Name(); {
			case dir == "run":
				// The user may put files there, but no process has listened before these existed.
				if own, err = s.hasDirs(layersDir, disksDir); err != nil {
					return "", err
				}
				own = own && (locked || e.Type()&fs.ModeSocket != 0)
			case !locked:
			case dir == tmpDir && strings.HasPrefix(name, keptPrefix):
				own = true
			case dir == tmpDir && isTxnDir(e):
				inTxn, err := s.foreignInTxn(s.path(tmpDir, name))
				if err != nil {
					return "", err
				}
				own = inTxn == ""
			case dir == reserveDir:
				if n, err := strconv.Atoi(name); err != nil || n < 0 || len(name) != 2 {
					break
				}
				if own, err = isOwn(s.ownReserve(s.path(reserveDir, name))); err != nil {
					return "", fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
				}
			case dir == indexDir:
				if strings.TrimSuffix(name, vfs.TempSuffix) == indexFile {
					if own, err = isOwn(s.ownIndex(s.path(indexDir, name))); err != nil {
						return "", fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
					}
				}
			}
			if !own {
				return shell.Text(dir+"/"+e.Name()) + " in it", nil
			}
		}
	}
	return "", nil
}

// isOwn turns the result of ownIndex or ownReserve into an answer. A file that was removed
// meanwhile is no foreign one.
func isOwn(err error) (bool, error) {
	switch {
	case errors.Is(err, errForeign):
		return false, nil
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return true, nil
	}
	return false, err
}

// hasDirs reports whether the store has all of these directories.
func (s *Store) hasDirs(names ...string) (bool, error) {
	for _, name := range names {
		if exists, err := s.exists(s.path(name)); err != nil || !exists {
			return false, err
		}
	}
	return true, nil
}

// lockText says what a store's lock file contains.
type lockText int

const (
	lockOther   lockText = iota // another program's
	lockUnknown                 // nothing, or what a power cut has left of lockMagic
	lockOwn                     // lockMagic
)

// readLockText reads the beginning of the lock file.
func (s *Store) readLockText() (lockText, error) {
	text, err := s.beginOf(s.path(lockFile), 4096)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return lockUnknown, nil // the caller's open reports it
	case err != nil:
		return lockUnknown, fmt.Errorf("store %s: %w", shell.Text(s.dir), err)
	case strings.HasPrefix(string(text), lockMagic):
		return lockOwn, nil
	case strings.HasPrefix(lockMagic, string(bytes.TrimRight(text, "\x00"))):
		return lockUnknown, nil
	}
	return lockOther, nil
}
