package vfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// RealPath returns the present path of an open file without symbolic links, or the name it was
// opened by if the path is not known.
func RealPath(f File) string {
	if o, ok := f.(*osFile); ok {
		if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", o.fd)); err == nil &&
			filepath.IsAbs(path) {
			return path
		}
	}
	return f.Name()
}

// HoldersText names the holders of a lock for a sentence.
func HoldersText(holders []string) string {
	if len(holders) == 0 {
		return "another process, unknown to this user,"
	}
	return strings.Join(holders, ", ")
}

// HoldersOf returns the other processes that hold a lock of any kind on the file, as "NAME (process
// PID)"; those that this user may know of.
func HoldersOf(f File) []string {
	o, ok := f.(interface {
		holders(match func(lock []string) bool) []string
	})
	if !ok {
		return nil
	}
	return o.holders(func([]string) bool { return true })
}

// imageHolders returns the holders of locks on QEMU's bytes.
func (f *osFile) imageHolders() []string { return f.holders(isImageLock) }

// holders returns the other processes with locks that match, which gets the fields of /proc/locks
// from the kind on. Every user may read there the locks of whole files (FLOCK) and of processes
// (POSIX). For a lock of an open file description the process is -1 there; /proc/PID/fdinfo, which
// only the process's user may read, lists those of each descriptor.
func (f *osFile) holders(match func(lock []string) bool) []string {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) != nil {
		return nil
	}
	found := map[int]bool{}
	device := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	locks, _ := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(locks)) {
		w := strings.Fields(line)
		if len(w) < 8 || w[1] == "->" || w[5] != device || !match(w[1:]) {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 && pid != os.Getpid() {
			found[pid] = true
		}
	}
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo")
	for _, dir := range infos {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil || found[pid] {
			continue
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if pid == os.Getpid() && e.Name() == strconv.Itoa(f.fd) {
				continue
			}
			info, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			if holdsLock(string(info), st.Ino, match) && sameInode(pid, e.Name(), &st) {
				found[pid] = true
				break
			}
		}
	}
	names := make([]string, 0, len(found))
	for pid := range found {
		names = append(names, fmt.Sprintf("%s (process %d)", commandName(pid), pid))
	}
	slices.Sort(names)
	return names
}

// holdsLock looks in the text of an fdinfo file for a matching lock on an inode, such as "lock: 1:
// OFDLCK ADVISORY READ -1 08:01:1234 100 101".
func holdsLock(info string, inode uint64, match func(lock []string) bool) bool {
	for line := range strings.Lines(info) {
		w := strings.Fields(line)
		if len(w) >= 9 && w[0] == "lock:" && strings.HasSuffix(w[6], ":"+strconv.FormatUint(inode,
			10)) && match(w[2:]) {
			return true
		}
	}
	return false
}

// isImageLock reports whether a lock, "OFDLCK ADVISORY READ -1 08:01:1234 100 101" or "POSIX ... 0
// EOF", is on one of QEMU's bytes.
func isImageLock(lock []string) bool {
	if lock[0] != "OFDLCK" && lock[0] != "POSIX" {
		return false
	}
	first, err := strconv.ParseInt(lock[5], 10, 64)
	if err != nil || first >= lockShareBase+lockBits {
		return false
	}
	last, err := strconv.ParseInt(lock[6], 10, 64)
	return err != nil || last >= lockPermBase // "EOF"
}

// sameInode reports whether a process's descriptor is of the file st: the inode number alone may be
// that of a file on another device.
func sameInode(pid int, fd string, st *unix.Stat_t) bool {
	var other unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, fd), &other) != nil {
		return false
	}
	return other.Dev == st.Dev && other.Ino == st.Ino
}

// commandName returns the first 15 bytes of a program's name, which the kernel keeps.
func commandName(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "a program"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimSuffix(string(name), "\n"))
}
