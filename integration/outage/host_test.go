//go:build integration

package outage

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/integration/outage/device"
)

// Operations of the host on its file systems.

// syncfs calls syncfs(2) on the file system.
func (m *machine) syncfs() error {
	f, err := os.Open(m.mnt)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// files returns the paths of the store's regular files.
func (m *machine) files() (paths []string) {
	m.Helper()
	m.must(filepath.WalkDir(m.store.Dir, func(p string, e iofs.DirEntry, err error) error {
		if errors.Is(err, iofs.ErrNotExist) {
			return nil // the server has removed it
		}
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, p)
		}
		return err
	}))
	return paths
}

// isData reports whether a file holds a layer's data: such files are as long as a disk.
func isData(path string) bool {
	st, err := os.Stat(path)
	return err == nil && (st.Size() == diskSize || st.Size() == wideSize)
}

// writeBack makes the kernel write a file's dirty pages, as it may at any time, and waits for that.
// It does not commit a journal. Errors are not returned here: the kernel keeps them for the next
// fsync. (SYNC_FILE_RANGE_WAIT_AFTER would consume them.)
func (m *machine) writeBack(path string) {
	m.Helper()
	f, err := os.Open(path)
	if errors.Is(err, iofs.ErrNotExist) || errors.Is(err, unix.EIO) {
		return // the server has removed it, or XFS has given up after an error of its log
	}
	m.must(err)
	defer f.Close()
	for end := time.Now().Add(waitLimit); ; time.Sleep(time.Millisecond) {
		err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		if errors.Is(err, unix.EROFS) {
			return // btrfs has given up after an error and writes nothing
		}
		// XFS may report at once that it could not begin. The pages count as written all the same.
		if !errors.Is(err, unix.EIO) {
			m.must(os.NewSyscallError("sync_file_range", err))
		}
		n, err := unwritten(f)
		m.must(err)
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			m.Fatalf("%s: %d pages are still not written back", path, n)
		}
	}
}

// fsyncAllButData makes everything durable but the data of layers: a kernel may write files back in
// any order.
func (m *machine) fsyncAllButData() {
	m.Helper()
	for _, p := range m.files() {
		if isData(p) {
			continue
		}
		f, err := os.Open(p)
		if errors.Is(err, iofs.ErrNotExist) {
			continue // the server has removed it
		}
		m.must(err)
		m.must(errors.Join(f.Sync(), f.Close()))
	}
}

// otherNamespace is a command that runs another in a mount namespace of its own, as systemd does.
var otherNamespace = []string{"unshare", "--mount", "--propagation", "slave"}

// dropCaches makes the kernel evict clean, unmapped pages and then inodes.
func (m *machine) dropCaches() {
	m.Helper()
	m.must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// mapping is one of the server's shared mappings of a file of the machine.
type mapping struct {
	path       string
	start, len uint64
}

// mappings returns the server's shared mappings of files of the file system.
func (m *machine) mappings() (maps []mapping) {
	m.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.server.PID()))
	m.must(err)
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		// START-END PERMISSIONS OFFSET DEVICE INODE PATH
		f := strings.Fields(s.Text())
		if len(f) != 6 || f[1][3] != 's' || !strings.HasPrefix(f[5], m.mnt+"/") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, err := strconv.ParseUint(from, 16, 64)
		m.must(err)
		b, err := strconv.ParseUint(to, 16, 64)
		m.must(err)
		maps = append(maps, mapping{f[5], a, b - a})
	}
	return maps
}

// evict makes the kernel evict the clean pages of the store's files, mapped or not.
func (m *machine) evict() {
	m.Helper()
	for _, p := range m.mappings() {
		m.must(pageOut(m.server.PID(), p.start, p.len))
	}
	m.dropCaches()
}

// places returns the positions of files on the device, or the whole device if the file system does
// not report them.
func (m *machine) places(paths ...string) (ranges []device.Range) {
	m.Helper()
	if !m.fs.ranges {
		return []device.Range{{Off: 0, Len: deviceSize}}
	}
	for _, p := range paths {
		f, err := os.Open(p)
		m.must(err)
		r, err := extents(f)
		m.must(errors.Join(err, f.Close()))
		ranges = append(ranges, r...)
	}
	return ranges
}

// fill leaves exactly pages free pages on the file system.
func (m *machine) fill(pages int) {
	m.Helper()
	f, err := os.OpenFile(filepath.Join(m.mnt, "ballast"), os.O_RDWR|os.O_CREATE, 0o600)
	m.must(err)
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	m.must(err)
	// A sync frees reservations: fill until nothing more fits.
	for grown := true; grown; {
		grown = false
		for size := int64(16 << 20); size >= 4096; {
			err := unix.Fallocate(int(f.Fd()), 0, at, size)
			if errors.Is(err, unix.ENOSPC) {
				size /= 4
				continue
			}
			m.must(os.NewSyscallError("fallocate", err))
			at += size
			grown = true
		}
		m.must(m.syncfs())
	}
	m.must(f.Truncate(at - int64(pages)*4096))
	m.must(m.syncfs())
}

// ballast is one page. It is not zero, because some file systems do not store zeros.
var ballast = bytes.Repeat([]byte{0xa5}, 4096)

// free removes the files of fill.
func (m *machine) free() {
	m.Helper()
	m.must(os.RemoveAll(filepath.Join(m.mnt, "ballast")))
	m.must(m.syncfs())
}

// share makes the store's files share their blocks with copies. These replace the copies of the
// last call.
func (m *machine) share() {
	m.Helper()
	copies := filepath.Join(m.mnt, "copies")
	m.must(os.MkdirAll(copies, 0o755))
	for i, p := range m.files() {
		m.must(reflink(p, filepath.Join(copies, strconv.Itoa(i))))
	}
}

func reflink(from, to string) error {
	src, err := os.Open(from)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil // the server has removed it
	}
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("FICLONE", unix.IoctlFileClone(int(dst.Fd()),
		int(src.Fd()))), dst.Close())
}
