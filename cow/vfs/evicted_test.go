package vfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
)

// A cached page anywhere in a sparse file shows that its inode was not evicted: at the start of its
// data, far behind it, at its end, and in a hole in front of it that was read.
func TestEvicted(t *testing.T) {
	const size = 1 << 40
	for _, c := range []struct {
		name       string
		data, page int64 // the only data; the only page in the cache, -1: none
		evicted    bool
	}{
		{"no page", 1 << 30, -1, true},
		{"no data", -1, -1, true},
		{"the first page", 0, 0, false},
		{"the first data", 1 << 30, 1 << 30, false},
		{"behind the first data", 1 << 20, 1 << 38, false},
		{"the last page", 1 << 20, size - 4096, false},
		{"a hole in front of the data", 1 << 39, 1 << 20, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data")
			f, err := (OS{}).OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
			test.Must(t, err)
			defer f.Close()
			o := f.(*osFile)
			if o.memory {
				t.Skip("the directory for tests is in memory (tmpfs), where nothing is evicted")
			}
			if _, err := o.cached(&unix.CachestatRange{}); errors.Is(err, unix.ENOSYS) ||
				errors.Is(err, unix.EPERM) {
				t.Skipf("this kernel does not tell what is in the page cache (expected Linux 6.5 or later): %v", err)
			}
			test.Must(t, f.Truncate(size))
			if c.data >= 0 {
				test.Must(t, test.Err(f.WriteAt(make([]byte, 4096), c.data)))
			}
			test.Must(t, unix.Fsync(o.fd))
			// Random: no other page is read with it.
			for _, advice := range []int{unix.FADV_DONTNEED, unix.FADV_RANDOM} {
				test.Must(t, unix.Fadvise(o.fd, 0, 0, advice))
			}
			if c.page >= 0 {
				test.Must(t, test.Err(f.ReadAt(make([]byte, 4096), c.page)))
			}
			evicted, err := (OS{}).Evicted(f)
			test.Must(t, err)
			test.Equal(t, evicted, c.evicted, "Evicted")
		})
	}
}
