package aio

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// An operation that fails completes with its error, without effect on others.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	test.Must(t, os.WriteFile(name, pattern(0, 4*page), 0o600))
	open := func(flag int) int {
		fd, err := unix.Open(name, flag|unix.O_CLOEXEC, 0)
		test.Must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	rw, ro, wo := open(unix.O_RDWR), open(unix.O_RDONLY), open(unix.O_WRONLY)
	folder, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	test.Must(t, err)
	defer unix.Close(folder)
	full, err := unix.Open("/dev/full", unix.O_RDWR|unix.O_CLOEXEC, 0)
	test.Must(t, err)
	defer unix.Close(full)
	// A number too high to be reused at once.
	closed, err := unix.FcntlInt(uintptr(rw), unix.F_DUPFD_CLOEXEC, 800)
	test.Must(t, err)
	unix.Close(closed)
	gone, err := unix.Mmap(-1, 0, page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	test.Must(t, err)
	defer unix.Munmap(gone)

	good := make([]byte, page)
	guarded := vec(good)
	guarded[0] = unix.Iovec{Base: addressOf(gone), Len: page}
	cases := []struct {
		name  string
		write bool
		fd    int
		iov   []unix.Iovec
		off   int64
		errno unix.Errno
	}{
		{"closed descriptor", false, closed, vec(good), 0, unix.EBADF},
		{"negative descriptor", false, -1, vec(good), 0, unix.EBADF},
		{"read of a write-only file", false, wo, vec(good), 0, unix.EBADF},
		{"write of a read-only file", true, ro, vec(good), 0, unix.EBADF},
		{"directory", false, folder, vec(good), 0, unix.EISDIR},
		{"device full", true, full, vec(good), 0, unix.ENOSPC},
		{"memory that is not there", false, rw, guarded, 0, unix.EFAULT},
		{"write from memory that is not there", true, rw, guarded, 0, unix.EFAULT},
		{"offset -1", false, rw, vec(good), -1, unix.EINVAL},
		{"offset -4096", false, rw, vec(good), -4096, unix.EINVAL},
		{"smallest offset", true, rw, vec(good), math.MinInt64, unix.EINVAL},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			conform(t, 4, func(r *rig) {
				before, after := make([]byte, page), make([]byte, page)
				r.start(1, false, rw, vec(before), 0)
				r.start(2, c.write, c.fd, c.iov, c.off)
				r.start(3, false, rw, vec(after), page)
				r.submit()
				got := r.wait(3)
				want(r.t, "before", got[1], page, 0)
				want(r.t, c.name, got[2], 0, c.errno)
				want(r.t, "after", got[3], page, 0)
				wantPattern(r.t, "before", before, 0)
				wantPattern(r.t, "after", after, page)
			})
		})
	}
}

// Most file systems refuse unaligned direct I/O, some do it: the engine returns the same as pread.
func TestUnalignedDirect(t *testing.T) {
	for _, p := range places(t) {
		if p.flag&unix.O_DIRECT == 0 {
			continue
		}
		fd := p.file(t, 4*page)
		mem := aligned(t, page)
		n, err := unix.Pread(fd, mem[1:513], 3)
		errno, _ := err.(unix.Errno)
		n = max(n, 0)
		conform(t, 4, func(r *rig) {
			want(r.t, "unaligned", r.transfer(false, fd, vec(mem[1:513]), 3), n, errno)
		})
	}
}

func TestOptions(t *testing.T) {
	for _, v := range variants(t) {
		for _, depth := range []int{-1, 0, MaxDepth + 1} {
			test.ErrorIs(t, test.Err(v.make(depth, 0)), ErrOptions, v.name, depth)
		}
		for _, depth := range []int{1, 3, 100, MaxDepth} {
			e, err := v.make(depth, 0)
			if err != nil {
				t.Errorf("%s, depth %d: %v", v.name, depth, err)
				continue
			}
			n := 0
			for e.Start(uint64(n), false, -1, nil, 0) {
				n++
			}
			if n != depth {
				t.Errorf("%s, depth %d: full at %d", v.name, depth, n)
			}
			test.Check(t, e.Close(), v.name, "Close")
		}
		null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		test.Must(t, err)
		if _, err := v.make(1, null); !errors.Is(err, ErrOptions) ||
			errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s, /dev/null for an eventfd: %v", v.name, err)
		}
		unix.Close(null)
	}
}
