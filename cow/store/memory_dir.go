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
