package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/pagecache"
	"cowblk/internal/test"
)

// loopDevice returns a block device of the given logical block size over a file. Only root can make
// one, and not in every container.
func loopDevice(t *testing.T, size int64, block uint32) string {
	t.Helper()
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no loop devices here: /dev/loop-control: %v", err)
	}
	defer unix.Close(control)
	backing := create(t, filepath.Join(t.TempDir(), "backing")).(*osFile)
	test.Must(t, backing.Truncate(size))
	for range 20 { // another process may be quicker to take a free one
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("no loop devices here: %v", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		loop, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Skipf("no loop devices here: %v", err)
		}
		err = unix.IoctlLoopConfigure(loop, &unix.LoopConfig{Fd: uint32(backing.fd), Size: block,
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == unix.EBUSY {
			unix.Close(loop)
			continue
		}
		t.Cleanup(func() { unix.Close(loop) }) // the last close frees the device
		test.Must(t, err)
		return name
	}
	t.Fatal("no loop device stays free long enough")
	return ""
}

func TestBlockDevice(t *testing.T) {
	const size = 8 << 20
	name := loopDevice(t, size, 512)
	want := content(size, 5)
	for _, flag := range []int{0, Direct} {
		f, err := OS{}.OpenFile(name, os.O_RDWR|flag, 0)
		test.Must(t, err)
		if n, err := f.Size(); n != size || err != nil {
			t.Errorf("size: got %d, %v, want %d", n, err, size)
		}
		mem := pages(t, 1<<20)
		for off := int64(0); off < size; off += int64(len(mem)) {
			copy(mem, want[off:])
			if n, err := f.Pwritev(vector(mem), off); n != len(mem) || err != nil {
				t.Fatalf("Pwritev: got %d, %v", n, err)
			}
		}
		clear(mem)
		if n, err := f.Preadv(vector(mem), 512); n != len(mem) || err != nil ||
			!bytes.Equal(mem, want[512:][:len(mem)]) {
			t.Errorf("flag %#x: Preadv: got %d, %v, or other bytes", flag, n, err)
		}
		p := make([]byte, 700)
		if _, err := f.ReadAt(p, 100); err != nil || !bytes.Equal(p, want[100:800]) {
			t.Errorf("flag %#x: ReadAt: got %v, or other bytes", flag, err)
		}
		if f.AsyncFD(vector(mem), 0) < 0 {
			t.Errorf("flag %#x: no descriptor for asynchronous I/O", flag)
		}
		test.Must(t, f.PunchHole(4096, 8192))
		if _, err := f.ReadAt(p, 5000); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
			t.Errorf("flag %#x: a hole does not read as zeros: %v", flag, err)
		}
		test.Must(t, f.Datasync())
		m, err := f.Map(size, false)
		if flag == Direct {
			test.ErrorIs(t, err, pagecache.ErrNotMappable, "Map of direct I/O")
		} else {
			test.Must(t, err)
			m.MarkResident(0, size)
			clear(mem)
			if ok := copyOf(m, mem, 1<<20); !ok || !bytes.Equal(mem, want[1<<20:][:len(mem)]) {
				t.Error("a mapping of the device has other bytes")
			}
			test.Must(t, m.Close())
		}
		test.Must(t, f.Close())
	}
}

// A device with blocks larger than a guest's sectors refuses direct I/O.
func TestDirectOnLargeBlocks(t *testing.T) {
	name := loopDevice(t, 8<<20, 4096)
	f, err := OS{}.OpenFile(name, os.O_RDWR|Direct, 0)
	if !errors.Is(err, ErrNoDirect) {
		t.Fatalf("got %v, %v, want ErrNoDirect", f, err)
	}
	var refused *DirectError
	if !errors.As(err, &refused) || refused.Path != name || refused.Err == nil {
		t.Fatalf("the error does not say what is in the way: %v", err)
	}
	test.Texts(t, "direct.texts")(t, "large blocks", &DirectError{"/dev/loop", refused.Err})
	buffered, err := OS{}.OpenFile(name, os.O_RDWR, 0)
	test.Must(t, err)
	test.Must(t, buffered.Close())
}
