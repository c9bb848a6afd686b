package vfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// openFor opens the image and locks it.
func openFor(t *testing.T, path string, a ImageAccess) (File, error) {
	t.Helper()
	flag := os.O_RDONLY
	if a == ImageWrite {
		flag = os.O_RDWR
	}
	f, err := OS{}.OpenFile(path, flag, 0)
	test.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f, f.LockImage(a)
}

func TestLockImage(t *testing.T) {
	for _, tt := range []struct {
		first, second ImageAccess
		refused       bool
	}{
		{ImageRead, ImageRead, false},
		{ImageRead, ImageWrite, true},
		{ImageWrite, ImageRead, true},
		{ImageWrite, ImageWrite, true},
	} {
		t.Run(tt.first.String()+" then "+tt.second.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			create(t, path)
			f, err := openFor(t, path, tt.first)
			test.Must(t, err)
			_, err = openFor(t, path, tt.second)
			var refusal *ImageLockError
			if errors.As(err, &refusal) != tt.refused || tt.refused != errors.Is(err,
				ErrImageLocked) {
				t.Fatalf("refused %v, want %v", err, tt.refused)
			}
			if tt.refused && (len(refusal.Holders) != 1 || !strings.Contains(refusal.Holders[0],
				"process") || refusal.Wanted != tt.second) {
				t.Errorf("refusal %+v", refusal)
			}
			f.Close()
			if _, err = openFor(t, path, tt.second); err != nil {
				t.Errorf("after the first was closed: %v", err)
			}
		})
	}
}

// A refused lock leaves nothing, and a descriptor's own lock does not exclude it.
func TestLockImageConverted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path)
	reader, err := openFor(t, path, ImageRead)
	test.Must(t, err)
	writer, err := openFor(t, path, ImageWrite)
	if !errors.Is(err, ErrImageLocked) {
		t.Fatalf("writer beside a reader: %v", err)
	}
	test.Must(t, reader.LockImage(ImageWrite))
	test.Must(t, reader.LockImage(ImageRead))
	test.Must(t, reader.Close())
	test.Must(t, writer.LockImage(ImageWrite))
}

// QEMU's tools and this program see each other's locks.
func TestLockImageAndQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed: the integration tests need it, and try the same with more of QEMU")
	}
	path := filepath.Join(t.TempDir(), "image")
	test.Must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	qemuIO := func(args ...string) error {
		args = append(append([]string{"-f", "raw"}, args...), path)
		return exec.Command("qemu-io", args...).Run()
	}
	for _, a := range []ImageAccess{ImageRead, ImageWrite} {
		f, err := openFor(t, path, a)
		test.Must(t, err)
		if err := qemuIO("-c", "write 0 512"); err == nil {
			t.Errorf("QEMU writes beside one that is %s", a)
		}
		if err := qemuIO("-r", "-c", "read 0 512"); err != nil && a == ImageRead {
			t.Errorf("QEMU does not read beside one that is %s: %v", a, err)
		}
		f.Close()
	}
	test.Must(t, qemuIO("-c", "write 0 512"))
}

func TestHoldsImageLock(t *testing.T) {
	for line, want := range map[string]bool{
		"lock:\t1: OFDLCK ADVISORY  READ  -1 08:01:1234 100 101\n":             true,
		"pos:\t0\nlock:\t2: OFDLCK ADVISORY  READ  -1 08:01:1234 201 201\n":    true,
		"lock:\t1: OFDLCK ADVISORY  READ  -1 08:01:1235 100 101\n":             false,
		"lock:\t1: OFDLCK ADVISORY  READ  -1 08:01:1234 0 EOF\n":               true, // these bytes, too
		"lock:\t1: FLOCK  ADVISORY  WRITE 77 08:01:1234 0 EOF\n":               false,
		"lock:\t1: OFDLCK ADVISORY\nlock:\n\nmnt_id: 30\n":                     false,
		"lock:\t1: OFDLCK ADVISORY  READ  -1 08:01:1234 99999999999999999999 ": false,
	} {
		if got := holdsLock(line, 1234, isImageLock); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}
