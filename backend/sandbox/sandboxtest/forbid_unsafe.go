package sandboxtest

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Forbid has landlock's first system call fail on every thread of this process, for
// good: ENOSYS on a kernel that does not have it, EOPNOTSUPP where it is switched off.
func Forbid(errno unix.Errno) error {
	const (
		load     = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jumpSame = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		answer   = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // struct seccomp_data: nr
		{Code: jumpSame, K: unix.SYS_LANDLOCK_CREATE_RULESET, Jf: 1},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// CAP_SYS_ADMIN or this: it is what seccomp wants, and it is tested elsewhere.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}
