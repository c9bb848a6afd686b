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

// imageHolders names the other processes that hold image locks on the file, as far as this user may know: the kernel
// does not say whose a lock of an open file description is (l_pid is -1), but lists the locks of each descriptor in
// /proc/PID/fdinfo.
func (f *osFile) imageHolders() []string {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) != nil {
		return nil
	}
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo")
	var names []string
	for _, dir := range infos {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil {
			continue
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if pid == os.Getpid() && e.Name() == strconv.Itoa(f.fd) {
				continue
			}
			info, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			if holdsImageLock(string(info), st.Ino) && sameInode(pid, e.Name(), &st) {
				names = append(names, fmt.Sprintf("%s (process %d)", commandName(pid), pid))
				break
			}
		}
	}
	slices.Sort(names)
	return names
}

// holdsImageLock looks in the text of a fdinfo file for a lock on one of QEMU's bytes of an inode, such as
// "lock:	1: OFDLCK ADVISORY READ -1 08:01:1234 100 101".
func holdsImageLock(info string, inode uint64) bool {
	for line := range strings.Lines(info) {
		w := strings.Fields(line)
		if len(w) < 9 || w[0] != "lock:" || w[2] != "OFDLCK" || !strings.HasSuffix(w[6], ":"+strconv.FormatUint(inode, 10)) {
			continue
		}
		if first, err := strconv.ParseInt(w[7], 10, 64); err == nil && first >= lockPermBase && first < lockShareBase+lockBits {
			return true
		}
	}
	return false
}

// sameInode reports whether a process's descriptor is of the file st: an inode's number alone may be of another device.
func sameInode(pid int, fd string, st *unix.Stat_t) bool {
	var other unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, fd), &other) != nil {
		return false
	}
	return other.Dev == st.Dev && other.Ino == st.Ino
}

// commandName is the first 15 bytes of a program's name, as the kernel keeps it.
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
