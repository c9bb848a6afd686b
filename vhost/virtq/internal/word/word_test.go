package word

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"
)

// aligned returns n bytes on a multiple of 8.
func aligned(n int) []byte {
	b := make([]byte, n+8)
	for !Aligned(b, 8) {
		b = b[1:]
	}
	return b[:n]
}

func TestFieldsKeepTheirPlaceAndNeighbours(t *testing.T) {
	for name, store := range map[string]func([]byte, int, uint16){
		"Store16": Store16, "Replace16": Replace16} {
		for off := 0; off < 12; off += 2 {
			got, want := aligned(12), aligned(12)
			for i := range got {
				got[i], want[i] = byte(0xa0+i), byte(0xa0+i)
			}
			store(got, off, 0x1234)
			binary.LittleEndian.PutUint16(want[off:], 0x1234)
			if !bytes.Equal(got, want) {
				t.Errorf("%s at %d: % x, expected % x", name, off, got, want)
			}
			if v := Load16(got, off); v != 0x1234 {
				t.Errorf("Load16 after %s at %d: %#x", name, off, v)
			}
		}
	}
	b := aligned(8)
	Store32(b, 4, 0xfeedface)
	if Load32(b, 4) != 0xfeedface || binary.LittleEndian.Uint32(b[4:]) != 0xfeedface {
		t.Errorf("Store32: % x", b)
	}
	Put32(b, 4, 0xdeadbeef)
	if binary.LittleEndian.Uint64(b) != 0xdeadbeef00000000 {
		t.Errorf("Put32: % x", b)
	}
}

func TestBoundsAreChecked(t *testing.T) {
	b := aligned(6)
	defer func() {
		if recover() == nil {
			t.Error("a word that ends beyond the slice was read")
		}
	}()
	Load16(b, 4)
}

func TestAligned(t *testing.T) {
	b := aligned(16)
	for off, want := range map[int][3]bool{0: {true, true, true}, 2: {true, false, false},
		4: {true, true, false}, 8: {true, true, true}} {
		for i, n := range []uintptr{2, 4, 8} {
			if Aligned(b[off:], n) != want[i] {
				t.Errorf("offset %d, multiple of %d: %v", off, n, !want[i])
			}
		}
	}
}

// Two goroutines own one half of a word each; neither may lose the other's stores.
func TestHalvesAreIndependent(t *testing.T) {
	const n = 20000
	b := aligned(4)
	var wg sync.WaitGroup
	for off, store := range map[int]func([]byte, int, uint16){0: Store16, 2: Replace16} {
		wg.Go(func() {
			for i := range uint16(n) {
				store(b, off, i)
				if got := Load16(b, off); got != i {
					t.Errorf("half %d: stored %d, read %d", off, i, got)
					return
				}
			}
		})
	}
	wg.Wait()
}
