package sandboxtest

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Forbid makes landlock_create_ruleset fail with errno on every thread of this process,
// irrevocably: ENOSYS as on a kernel without landlock, EOPNOTSUPP as where it is switched off.
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
	// seccomp needs this or CAP_SYS_ADMIN.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}
