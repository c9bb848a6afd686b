package store

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/imagefile"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

// overlay writes a qcow2 of 1 MiB that names a backing file and contains its first cluster.
func overlay(t testing.TB, path, backing, format string) string {
	t.Helper()
	return write(t, path, buildQcow2(qcow2File{clusterBits: 16, size: 1 << 20,
		data: noise(7, 65536), backing: backing, backingFmt: format}))
}

// An import ends for every backing file name and every kind of backing file. It refuses with the
// name and leaves nothing, with --backing and without. Without --backing it lists the chain.
func TestHostileBacking(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	raw := write(t, path("raw"), noise(1, 1<<20))
	must := func(err error) {
		t.Helper()
		test.Must(t, err)
	}
	must(syscall.Mkfifo(path("fifo"), 0o600))
	must(os.Symlink("fifo", path("to-fifo")))
	must(os.Symlink("loop-b", path("loop-a")))
	must(os.Symlink("loop-a", path("loop-b")))
	must(os.Symlink("/dev/zero", path("to-zero")))
	l, err := net.Listen("unix", path("sock"))
	must(err)
	defer l.Close()
	overlay(t, path("self.qcow2"), "self.qcow2", "qcow2")
	must(os.Symlink("self.qcow2", path("self-link")))
	must(os.Link(path("self.qcow2"), path("self-hard")))
	overlay(t, path("ring-a"), "ring-b", "qcow2")
	overlay(t, path("ring-b"), "ring-a", "qcow2")
	overlay(t, path("deep-0"), raw, "raw")
	for i := range imagefile.MaxBacking + 1 {
		overlay(t, path(fmt.Sprint("deep-", i+1)), fmt.Sprint("deep-", i), "qcow2")
	}
	overlay(t, path("over-fifo"), "fifo", "raw")
	write(t, path("short"), []byte("QFI\xfb"))
	tests := []struct {
		backing, format string
		with            string // a part of the error with --backing
	}{
		{path("fifo"), "raw", "a FIFO"},
		{"fifo", "qcow2", "a FIFO"},
		{"to-fifo", "raw", "a FIFO"},
		{"over-fifo", "qcow2", "a FIFO"},
		{"sock", "raw", "a socket"},
		{"/dev/zero", "raw", "a character device"},
		{"/dev/tty", "raw", "a character device"},
		{"/dev/ptmx", "raw", "a character device"},
		{"/dev/fd/0", "raw", "/dev/fd/0"},
		{"to-zero", "raw", "a character device"},
		{dir, "raw", "a directory"},
		{".", "raw", "a directory"},
		{"/proc/kmsg", "raw", "proc"},
		{"/proc/self/environ", "raw", "proc"},
		{"/proc/self/mem", "qcow2", "proc"},
		{"/sys/kernel/notes", "raw", "sysfs"},
		{"loop-a", "raw", "too many levels of symbolic links"},
		{"self.qcow2", "qcow2", "another file than those above it"},
		{"self-link", "qcow2", "another file than those above it"},
		{"self-hard", "qcow2", "another file than those above it"},
		{"ring-a", "qcow2", "another file than those above it"},
		{fmt.Sprint("deep-", imagefile.MaxBacking), "qcow2", fmt.Sprintf("at most %d",
			imagefile.MaxBacking)},
		{"nosuch", "raw", "expected a file, found none"},
		{"../nosuch/raw", "raw", "expected a file, found none"},
		{"raw/under", "raw", "not a directory"},
		{"json:{\"driver\":\"raw\",\"file\":{\"filename\":\"" + raw + "\"}}", "raw",
			`found "json:{`},
		{"nbd://localhost/x", "raw", `"nbd://localhost/x"`},
		{"nbd:unix:/tmp/s", "raw", `"nbd:unix:/tmp/s"`},
		{"file:" + raw, "raw", `"file:`},
		{"file://" + raw, "raw", `"file://`},
		{"http://localhost/x", "raw", `"http://localhost/x"`},
		{"host_device:/dev/sda", "raw", `"host_device:/dev/sda"`},
		{"fat:/etc", "raw", `"fat:/etc"`},
		{"line\nbreak", "raw", `line\nbreak`},
		{"\x1b[2Jclear", "raw", `\x1b[2Jclear`},
		{"zero\x00byte", "raw", "zero bytes"},
		{"not\xffutf8", "raw", `not\xffutf8`},
		{"raw", "vdi", `"vdi"`},
		{"raw", "", "found none"},
		{"raw", "blkdebug", `"blkdebug"`},
		{"raw", "qcow2", "magic"},
		{"short", "qcow2", "header"},
		{strings.Repeat("x", 300), "raw", "file name too long"},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprint(i, " ",
			strings.ToValidUTF8(strings.ReplaceAll(tt.backing[max(0, len(tt.backing)-20):], "\x00",
				"0"), "?")), func(t *testing.T) {
			s := newStore(t)
			top := overlay(t, path("top"), tt.backing, tt.format)
			for _, backing := range []bool{true, false} {
				_, err := s.Import(ctx, top, "img", ImportOptions{Backing: backing})
				if err == nil || !strings.Contains(err.Error(), tt.with) {
					t.Fatalf("with leave %t: error %v, want one with %q", backing, err, tt.with)
				}
				if strings.ContainsAny(err.Error(), "\x1b\x00") || strings.Contains(err.Error(),
					"\xff") || strings.Contains(err.Error(), "line\nbreak") {
					t.Errorf("the message holds what cannot be printed: %q", err)
				}
				if !backing && tt.with != "zero bytes" && !strings.Contains(err.Error(),
					"--backing") {
					t.Errorf("without leave: %v", err)
				}
				nothingLeft(t, s)
			}
		})
	}
}

// Backing files that may be followed are followed, listed in image.json, and read as QEMU reads
// them.
func TestBackingFollowed(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	data := noise(1, 1<<20)
	write(t, path("base raw"), data)
	overlay(t, path("mid.qcow2"), "base raw", "raw")
	top := overlay(t, path("top.qcow2"), path("mid.qcow2"), "qcow2")
	_, err := s.Import(ctx, top, "img", ImportOptions{})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), path("mid.qcow2")+" (qcow2), "+
		path("base raw")+" (raw)") {
		t.Fatalf("without leave: %v", err)
	}
	img, err := s.Import(ctx, top, "img", ImportOptions{Backing: true})
	test.Must(t, err)
	if fmt.Sprint(img.Backing) != fmt.Sprintf("[%s (qcow2) %s (raw)]", path("mid.qcow2"),
		path("base raw")) {
		t.Errorf("backing files %v", img.Backing)
	}
	copy(data, noise(7, 65536))
	if got, err := os.ReadFile(s.ImageData("img")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("wrong content, %v", err)
	}
	// Another process writes to the bottom of the chain.
	f, err := vfs.OS{}.OpenFile(path("base raw"), os.O_RDWR, 0)
	test.Must(t, err)
	defer f.Close()
	test.Must(t, f.LockImage(vfs.ImageWrite))
	if _, err := s.Import(ctx, top, "img2", ImportOptions{Backing: true}); !errors.Is(err,
		ErrInUse) || !strings.Contains(err.Error(), "--force-share") {
		t.Errorf("while somebody writes to a backing file: %v", err)
	}
	if _, err := s.Import(ctx, top, "img2", ImportOptions{Backing: true,
		ForceShare: true}); err != nil {
		t.Errorf("with --force-share: %v", err)
	}
}

// The data of a disk that is open for writing is not imported, by any name. The same holds for a
// file that an earlier version serves raw, which has only flock.
func TestImportOfOpenDisk(t *testing.T) {
	s := newStore(t)
	m := create(t, s, "vm1", CreateOptions{Size: 1 << 20})
	src := s.paths(m.Head()).Data
	link := filepath.Join(t.TempDir(), "link")
	test.Must(t, os.Symlink(src, link))
	d := openDisk(t, s, "vm1")
	for _, path := range []string{src, link} {
		test.ErrorIs(t, test.Err(s.Import(ctx, path, "img", ImportOptions{})), ErrInUse,
			fmt.Sprintf("import of %s, which a disk writes to", path))
	}
	if _, err := s.Import(ctx, src, "forced", ImportOptions{ForceShare: true}); err != nil {
		t.Error(err)
	}
	test.Must(t, d.Close())
	f, err := vfs.OS{}.OpenFile(src, os.O_RDONLY, 0)
	test.Must(t, err)
	test.Must(t, f.Lock(true))
	test.ErrorIs(t, test.Err(s.Import(ctx, src, "img", ImportOptions{})), ErrInUse,
		"import of a file with a writer's flock")
	f.Close()
	if _, err := s.Import(ctx, src, "img", ImportOptions{}); err != nil {
		t.Error(err)
	}
}

// While an import reads a file, no other process may write to it.
func TestImportHoldsSource(t *testing.T) {
	s := newStore(t)
	src := tempFile(t, "src", noise(1, 3<<20))
	tried := false
	_, err := s.Import(ctx, src, "img", ImportOptions{Progress: func(string, int64, int64) {
		if tried {
			return
		}
		tried = true
		f, err := vfs.OS{}.OpenFile(src, os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		test.ErrorIs(t, f.LockImage(vfs.ImageWrite), vfs.ErrImageLocked,
			"a writer beside the import")
	}})
	if err != nil || !tried {
		t.Fatal(err, tried)
	}
}

// A path that JSON cannot represent makes neither a broken disk nor a broken image.
func TestPathsThatAreNoText(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	bad := write(t, filepath.Join(dir, "b\xff"), noise(1, 4096))
	odd := write(t, filepath.Join(dir, "a\nb"), noise(1, 4096))
	if _, err := s.Create(ctx, "vm1", CreateOptions{Base: bad}); !errors.Is(err, ErrInvalid) ||
		!strings.Contains(err.Error(), `b\xff`) {
		t.Errorf("create: %v", err)
	}
	create(t, s, "vm2", CreateOptions{Base: odd})
	content(t, s, "vm2")
	for i, src := range []string{bad, odd} {
		name := fmt.Sprint("img", i)
		img, err := s.Import(ctx, src, name, ImportOptions{})
		test.Must(t, err)
		again, err := s.Image(name)
		if err != nil || again.Source != img.Source || !strings.HasPrefix(again.Source, `"`) {
			t.Errorf("source %q, read again %v, %v", img.Source, again, err)
		}
	}
	if _, err := s.Import(ctx, filepath.Join(dir, "no\xff\n"), "img9",
		ImportOptions{}); err == nil || !strings.Contains(err.Error(), `no\xff\n`) {
		t.Errorf("import of a file that is not there: %q", err)
	}
}

// If a symbolic link is a part of a backing file's path, image.json shows the file that was opened.
func TestBackingByASymbolicLink(t *testing.T) {
	s := newStore(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	test.Must(t, err)
	secret := filepath.Join(dir, "private", "secret")
	test.Must(t, os.Mkdir(filepath.Dir(secret), 0o700))
	write(t, secret, noise(1, 1<<20))
	for link, to := range map[string]string{"link": secret, "linked": "private", "twice": "link"} {
		test.Must(t, os.Symlink(to, filepath.Join(dir, link)))
	}
	for i, name := range []string{"link", "linked/secret", "twice"} {
		top := overlay(t, filepath.Join(dir, fmt.Sprint("top", i)), filepath.Join(dir, name), "raw")
		_, err := s.Import(ctx, top, "img", ImportOptions{})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), secret+" (raw)") {
			t.Errorf("%s, without leave: %v", name, err)
		}
		img, err := s.Import(ctx, top, fmt.Sprint("img", i), ImportOptions{Backing: true})
		test.Must(t, err)
		if got := fmt.Sprint(img.Backing); got != "["+secret+" (raw)]" {
			t.Errorf("%s: recorded %s", name, got)
		}
	}
}
