package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

func create(t *testing.T, name string) File {
	t.Helper()
	f, err := OS{}.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	test.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func vector(parts ...[]byte) []Iovec {
	iov := make([]Iovec, len(parts))
	for i, p := range parts {
		iov[i].Base = &p[0]
		iov[i].SetLen(len(p))
	}
	return iov
}

func TestVectoredIO(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"))
	n, err := f.Pwritev(vector([]byte("abc"), []byte("defgh")), 10)
	if n != 8 || err != nil {
		t.Fatalf("Pwritev: got %d, %v, want 8", n, err)
	}
	a, b := make([]byte, 2), make([]byte, 100)
	n, err = f.Preadv(vector(a, b), 10)
	if n != 8 || err != nil || string(a) != "ab" || string(b[:6]) != "cdefgh" {
		t.Errorf("Preadv: got %d, %v, %q %q", n, err, a, b[:6])
	}
	if n, err := f.Preadv(vector(a), 18); n != 0 || err != nil {
		t.Errorf("Preadv at the end of the file: got %d, %v, want 0 and no error", n, err)
	}
	if n, err := f.Preadv(nil, 0); n != 0 || err != nil {
		t.Errorf("Preadv of nothing: got %d, %v", n, err)
	}
	test.ErrorIs(t, test.Err(f.Preadv(vector(a), -1)), syscall.EINVAL,
		"Preadv at a negative offset")
}

// The kernel refuses more than 1,024 pieces; this package passes the first ones.
func TestLongVectorIsShort(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"))
	iov := vector(make([]byte, MaxIovecs+5))
	for len(iov) < MaxIovecs+5 {
		iov = append(iov, iov[0])
		iov[len(iov)-1].SetLen(1)
	}
	iov[0].SetLen(1)
	if n, err := f.Pwritev(iov, 0); n != MaxIovecs || err != nil {
		t.Errorf("got %d, %v, want %d", n, err, MaxIovecs)
	}
}

func TestVectoredIODoesNotAllocate(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"))
	iov := vector(make([]byte, 4096))
	if n := testing.AllocsPerRun(100, func() {
		test.Check(t, test.Err(f.Pwritev(iov, 4096)))
		test.Check(t, test.Err(f.Preadv(iov, 4096)))
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestWholeIO(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"))
	if n, err := f.WriteAt([]byte("hello"), 3); n != 5 || err != nil {
		t.Fatalf("WriteAt: got %d, %v", n, err)
	}
	p := make([]byte, 10)
	if n, err := f.ReadAt(p, 0); n != 8 || err != io.EOF || string(p[3:8]) != "hello" {
		t.Errorf("ReadAt beyond the end: got %d, %v, %q, want 8 and io.EOF", n, err, p)
	}
	test.Must(t, f.Datasync())
	test.Must(t, f.AdviseRandom())
}

func TestPunchHoleAndNextData(t *testing.T) {
	const mib = 1 << 20
	f := create(t, filepath.Join(t.TempDir(), "f"))
	test.Must(t, f.Truncate(8*mib))
	if _, _, err := f.NextData(0); err != io.EOF {
		t.Fatalf("NextData of a hole: got %v, want io.EOF (does the file system keep holes?)", err)
	}
	_, err := f.WriteAt(bytes.Repeat([]byte{1}, 3*mib), mib)
	test.Must(t, err)
	start, end, err := f.NextData(0)
	if start != mib || end != 4*mib || err != nil {
		t.Errorf("NextData(0): got %d to %d, %v, want %d to %d", start, end, err, mib, 4*mib)
	}
	test.Must(t, f.PunchHole(mib, mib))
	test.Must(t, f.PunchHole(3*mib+100, 512)) // not whole file system blocks
	test.Must(t, f.PunchHole(0, 0))
	test.Must(t, f.PunchHole(7*mib, 5*mib)) // beyond the end
	start, _, err = f.NextData(0)
	if start != 2*mib || err != nil {
		t.Errorf("NextData after punching: got %d, %v, want %d", start, err, 2*mib)
	}
	p := make([]byte, 514)
	_, err = f.ReadAt(p, 3*mib+99)
	test.Must(t, err)
	want := make([]byte, 514)
	want[0], want[513] = 1, 1
	if !bytes.Equal(p, want) {
		t.Error("a hole within a block does not read as zeros, or took its neighbours along")
	}
	if size, err := f.Size(); size != 8*mib || err != nil {
		t.Errorf("size after punching: got %d, %v, want %d", size, err, 8*mib)
	}
	if _, _, err := f.NextData(8 * mib); err != io.EOF {
		t.Errorf("NextData at the end: got %v, want io.EOF", err)
	}
}

func TestWriteZerosStopsAtTheEnd(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f")).(*osFile)
	_, err := f.WriteAt(bytes.Repeat([]byte{1}, 3<<20), 0)
	test.Must(t, err)
	test.Must(t, f.writeZeros(1, 5<<20))
	p := make([]byte, 3<<20)
	_, err = f.ReadAt(p, 0)
	test.Must(t, err)
	if p[0] != 1 || !bytes.Equal(p[1:], make([]byte, 3<<20-1)) {
		t.Error("the range does not read as zeros, or a byte before it was changed")
	}
	if size, _ := f.Size(); size != 3<<20 {
		t.Errorf("size: got %d, want %d", size, 3<<20)
	}
}

func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	a, b := create(t, name), create(t, name)
	test.Must(t, a.Lock(true))
	for _, exclusive := range []bool{false, true} {
		test.ErrorIs(t, b.Lock(exclusive), ErrLocked, exclusive)
	}
	test.Must(t, a.Lock(false))
	test.Must(t, b.Lock(false))
	test.ErrorIs(t, a.Lock(true), ErrLocked, "exclusive lock of a shared file")
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	a, b := create(t, filepath.Join(dir, "a")), create(t, filepath.Join(dir, "b"))
	before, err := a.Identity()
	test.Must(t, err)
	if other, _ := b.Identity(); other == before {
		t.Error("two files have one identity")
	}
	test.Must(t, a.Truncate(512))
	after, err := a.Identity()
	test.Must(t, err)
	if after == before || after.Size != 512 || after.Inode != before.Inode || after.Block {
		t.Errorf("after a change: got %+v, before it was %+v", after, before)
	}
}

func TestOpenFileRefusesOtherKinds(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	test.Must(t, syscall.Mkfifo(fifo, 0o600))
	for _, name := range []string{dir, fifo, "/dev/null"} {
		if f, err := (OS{}).OpenFile(name, os.O_RDONLY, 0); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	test.ErrorIs(t, test.Err((OS{}).OpenFile(filepath.Join(dir, "none"), os.O_RDWR, 0)),
		fs.ErrNotExist, "open of a missing file")
}

func TestDirectories(t *testing.T) {
	o, dir := OS{}, t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	test.Must(t, o.MkdirAll(deep, 0o700))
	test.Must(t, o.MkdirAll(deep, 0o700))
	name := filepath.Join(deep, "f")
	test.Must(t, o.WriteFileAtomic(name, []byte("one"), 0o600))
	test.Must(t, o.WriteFileAtomic(name, []byte("2"), 0o600))
	if p, err := o.ReadFile(name); string(p) != "2" || err != nil {
		t.Errorf("ReadFile: got %q, %v", p, err)
	}
	if list, err := o.ReadDir(deep); len(list) != 1 || err != nil {
		t.Errorf("ReadDir: got %v, %v, want one file", list, err)
	}
	test.ErrorIs(t, o.MkdirAll(filepath.Join(name, "x"), 0o700), syscall.ENOTDIR,
		"MkdirAll below a file")
	test.Must(t, o.Rename(name, name+"2"))
	test.Must(t, o.SyncDir(deep))
	test.ErrorIs(t, test.Err(o.Stat(name)), fs.ErrNotExist, "Stat of a renamed file")
	test.Must(t, o.Remove(name+"2"))
	test.Must(t, o.RemoveAll(filepath.Join(dir, "a")))
}

// A write that fails leaves the old content and no temporary file.
func TestWriteAtomicFails(t *testing.T) {
	o, name := OS{}, filepath.Join(t.TempDir(), "f")
	test.Must(t, o.WriteFileAtomic(name, []byte("old"), 0o600))
	broken := failingRename{OS: o}
	if err := WriteAtomic(broken, name, []byte("new"), 0o600); !errors.Is(err, errRename) {
		t.Fatalf("got %v, want %v", err, errRename)
	}
	if p, _ := o.ReadFile(name); string(p) != "old" {
		t.Errorf("content: got %q, want %q", p, "old")
	}
	if _, err := o.Stat(name + TempSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the temporary file was left")
	}
}

var errRename = errors.New("no rename")

type failingRename struct{ OS }

func (failingRename) Rename(string, string) error { return errRename }
