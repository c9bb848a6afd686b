package faultfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// The hook of an FS sees each step, and its faults are what the caller gets.
func TestHookOnAnotherFileSystem(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a", "f")
	var seen []string
	faults := map[string]Fault{}
	x := Over(vfs.OS{}, func(c Call) Fault {
		seen = append(seen, c.Op)
		return faults[c.Op]
	})
	test.Must(t, x.MkdirAll(filepath.Dir(name), 0o700))
	test.Must(t, x.WriteFileAtomic(name, []byte("content"), 0o600))
	test.Must(t, test.Err(x.ReadFile(name)))
	want := []string{"mkdir", "sync directory", "create", "write", "sync", "rename",
		"sync directory", "open", "read"}
	if !slices.Equal(seen, want) {
		t.Errorf("seen %q, expected %q", seen, want)
	}
	f, err := x.OpenFile(name, os.O_RDWR, 0)
	test.Must(t, err)
	p := make([]byte, 7)
	iov := []vfs.Iovec{{Base: &p[0]}, {Base: &p[4]}}
	iov[0].SetLen(4)
	iov[1].SetLen(3)
	faults["read"] = Fault{Short: 5, Cold: true}
	if n, err := f.Preadv(iov, 0); n != 5 || err != nil || string(p[:5]) != "conte" {
		t.Errorf("a short read: %d, %v, %q", n, err, p)
	}
	test.ErrorIs(t, test.Err(f.PreadvNowait(iov, 0)), vfs.ErrWouldBlock)
	faults["write"], faults["truncate"] = Fault{Err: syscall.ENOSPC}, Fault{Skip: true}
	test.ErrorIs(t, test.Err(f.WriteAt([]byte("x"), 0)), syscall.ENOSPC)
	test.Must(t, f.Truncate(0))
	x.SetHook(nil)
	if p, err := x.ReadFile(name); err != nil || string(p) != "content" {
		t.Errorf("%q, %v", p, err)
	}
	test.Must(t, f.Lock(true))
	x.CloseFiles()
	other, err := vfs.OS{}.OpenFile(name, os.O_RDWR, 0)
	test.Must(t, err)
	test.Must(t, other.Lock(true))
	test.Must(t, other.Close())
	test.Must(t, f.Close()) // closed already
	test.Must(t, x.RemoveAll(filepath.Dir(name)))
}

// A KillFS makes the changes before the n-th one, and none after it.
func TestKillAtEachChange(t *testing.T) {
	for n := 1; ; n++ {
		dir := t.TempDir()
		m := NewKillFS(vfs.OS{}, Kill{At: n, Begin: func(c Call) bool { return c.Op == "rename" }})
		test.Must(t, m.Mkdir(filepath.Join(dir, "before"), 0o700)) // not counted
		err := m.WriteFileAtomic(filepath.Join(dir, "f"), []byte("x"), 0o600)
		_, there := os.Stat(filepath.Join(dir, "f"))
		killed := m.Killed()
		test.Equal(t, there == nil, n > 1, "the file is there", n)
		if killed {
			test.ErrorIs(t, err, ErrDead, n)
			test.ErrorIs(t, test.Err(m.OpenFile(filepath.Join(dir, "before"), os.O_RDONLY, 0)),
				ErrDead)
			test.Equal(t, len(m.Changes()), n)
			continue
		}
		test.Must(t, err)
		test.Equal(t, fmt.Sprint(len(m.Changes())), "2", "rename and sync of the directory")
		break
	}
}
