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

// ownMemoryDir is this user's directory where there is no run directory: /dev/shm/cowblk-UID. It need not exist; see
// MakeSharedDir. Everybody can make files in /dev/shm, and so take that name: then it is one with a random end, the
// first that this user has already, or a new one. Whoever looks for what lies there finds the paths recorded, or finds the same
// directory: nobody else can make one that is this user's, and nobody else can rename or remove it (/dev/shm is sticky). A
// process stays with one.
var ownMemoryDir = sync.OnceValue(func() string { return memoryDirIn("/dev/shm", os.Geteuid()) })

func memoryDirIn(shm string, uid int) string {
	plain := filepath.Join(shm, fmt.Sprintf("%s-%d", programDir, uid))
	ok, there := ownDir(plain, uid)
	if ok {
		return plain
	}
	others, _ := filepath.Glob(plain + "-*") // in the order of names
	for _, dir := range others {
		if ok, _ := ownDir(dir, uid); ok {
			return dir
		}
	}
	if !there {
		return plain
	}
	var end [8]byte
	_, _ = rand.Read(end[:]) // it never fails
	return plain + "-" + hex.EncodeToString(end[:])
}

// ownDir reports whether there is something at path, and whether it is a directory that no other user can change.
func ownDir(path string, uid int) (ok, there bool) {
	fi, err := os.Lstat(path)
	if err != nil {
		return false, !errors.Is(err, fs.ErrNotExist)
	}
	st, known := fi.Sys().(*syscall.Stat_t)
	return known && fi.IsDir() && int64(st.Uid) == int64(uid) && fi.Mode()&0o022 == 0, true
}

// userRunDir is the system's run directory for root, and this user's for others; empty: there is none.
func userRunDir(getenv func(string) string) string {
	if os.Geteuid() == 0 {
		return systemRun
	}
	if d := getenv(runtimeEnv); filepath.IsAbs(d) {
		return filepath.Join(d, programDir)
	}
	return ""
}
