package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"cowblk/cow/vfs"
)

// ownMemoryDir returns this user's directory in memory: /dev/shm/cowblk-UID. It need not exist; see
// MakeSharedDir. Other users can take that name in /dev/shm. Then a random suffix is added, and the
// first such directory that this user owns is used again. Other processes find the recorded paths,
// or the same directory: /dev/shm is sticky, so other users cannot create, rename or remove a
// directory of this user. The result is constant within a process.
var ownMemoryDir = sync.OnceValue(func() string { return memoryDirIn("/dev/shm", os.Geteuid()) })

func memoryDirIn(shm string, uid int) string {
	plain := filepath.Join(shm, fmt.Sprintf("%s-%d", programDir, uid))
	ok, exists := ownDir(plain, uid)
	if ok {
		return plain
	}
	others, _ := filepath.Glob(plain + "-*") // sorted by name
	for _, dir := range others {
		if ok, _ := ownDir(dir, uid); ok {
			return dir
		}
	}
	if !exists {
		return plain
	}
	var end [8]byte
	_, _ = rand.Read(end[:]) // never fails
	return plain + "-" + hex.EncodeToString(end[:])
}

// ownDir reports whether path exists (there), and whether it is a directory that no other user can
// change (ok).
func ownDir(path string, uid int) (ok, exists bool) {
	fi, err := os.Lstat(path)
	if err != nil {
		return false, !errors.Is(err, fs.ErrNotExist)
	}
	st, known := fi.Sys().(*syscall.Stat_t)
	return known && fi.IsDir() && int64(st.Uid) == int64(uid) && fi.Mode()&0o022 == 0, true
}

// userRunDir returns the system's run directory for root and the user's for others; empty: none.
func userRunDir(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return systemRun
	}
	if d := getenv(runtimeEnv); filepath.IsAbs(d) {
		return filepath.Join(d, programDir)
	}
	return ""
}

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
