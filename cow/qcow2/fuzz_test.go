package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"cowblk/cow/finding"
	"cowblk/internal/test"
)

// tiny is an image of 4 KiB in clusters of 512 bytes: unallocated, zero, data, compressed.
func tiny() []byte {
	be := binary.BigEndian
	p := make([]byte, 512*8)
	copy(p, Magic)
	be.PutUint32(p[4:], 3)
	be.PutUint32(p[20:], 9)
	be.PutUint64(p[24:], 4096)
	be.PutUint32(p[36:], 1)
	be.PutUint64(p[40:], 512)
	be.PutUint64(p[48:], 512)
	be.PutUint32(p[56:], 1)
	be.PutUint32(p[96:], 4)
	be.PutUint32(p[100:], 104)
	be.PutUint64(p[512:], 1024)
	be.PutUint64(p[1024+8:], flagZero)
	be.PutUint64(p[1024+16:], 1536)
	be.PutUint64(p[1024+24:], flagCompressed|1<<61|2048) // in two sectors
	copy(p[1536:], "data")
	// A stored block of deflate: final, length 512, its complement.
	copy(p[2048:], "\x01\x00\x02\xff\xfd")
	return p
}

func TestTiny(t *testing.T) {
	p := tiny()
	img, err := Open(bytes.NewReader(p), int64(len(p)))
	test.Must(t, err)
	for _, want := range []struct {
		off, n int64
		kind   Kind
	}{{0, 512, Unallocated}, {100, 412, Unallocated}, {512, 512, Zero}, {1024, 1024, Data},
		{2048, 2048, Unallocated}} {
		if kind, n, err := img.Status(want.off); kind != want.kind || n != want.n || err != nil {
			t.Errorf("offset %d: kind %d, %d bytes, %v, want %+v", want.off, kind, n, err, want)
		}
	}
	got := make([]byte, 1024)
	if _, err := img.ReadAt(got, 1024); err != nil || string(got[:4]) != "data" ||
		!bytes.Equal(got[4:], make([]byte, 1020)) {
		t.Errorf("read %q, %v", got[:8], err)
	}
}

// For any content of a file: no panic, no endless loop, no range outside of the disk, and errors
// with one of the sentinels.
func FuzzImage(f *testing.F) {
	f.Add(tiny())
	f.Fuzz(func(t *testing.T, p []byte) {
		img, err := Open(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			typed(t, err)
			return
		}
		buf := make([]byte, 700)
		for off, steps := int64(0), 0; off < img.Size && steps < 200; steps++ {
			kind, n, err := img.Status(off)
			if err != nil {
				typed(t, err)
				return
			}
			if n <= 0 || n > img.Size-off {
				t.Fatalf("%d bytes at %d of %d", n, off, img.Size)
			}
			if kind == Data {
				if _, err := img.ReadAt(buf[:min(n, int64(len(buf)))], off); err != nil {
					typed(t, err)
				}
			}
			off += n
		}
	})
}

func typed(t *testing.T, err error) {
	t.Helper()
	var e *finding.Finding
	if !errors.As(err, &e) || e.Err == nil || e.What == "" {
		t.Fatalf("%v is no Error", err)
	}
}

// Errors in fields that this package does not use are damage where QEMU refuses the image for them.
func TestHeaderFieldsOfNoUse(t *testing.T) {
	be := binary.BigEndian
	for name, spoil := range map[string]func(p []byte){
		"width of a refcount":          func(p []byte) { be.PutUint32(p[96:], 7) },
		"refcount table":               func(p []byte) { be.PutUint32(p[56:], 0) },
		"refcount table too large":     func(p []byte) { be.PutUint32(p[56:], 1<<20) },
		"offset of the refcount table": func(p []byte) { be.PutUint64(p[48:], 513) },
		"refcount table beyond all":    func(p []byte) { be.PutUint64(p[48:], 1<<61) },
		"internal snapshots":           func(p []byte) { be.PutUint32(p[60:], 1<<17) },
		"offset of the snapshot table": func(p []byte) {
			be.PutUint32(p[60:], 1)
			be.PutUint64(p[64:], 100)
		},
	} {
		p := tiny()
		spoil(p)
		test.ErrorIs(t, test.Err(Open(bytes.NewReader(p), int64(len(p)))), ErrDamaged, name)
	}
}
