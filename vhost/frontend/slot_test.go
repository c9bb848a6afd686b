package frontend

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"cowblk/internal/test"
)

// Slots bounds the requests in flight and the memory of buffers.
func TestSlots(t *testing.T) {
	f, end := connect(t, newRAMDisk(diskSize), Options{Slots: 2, Memory: 4 << 20,
		MaxTransfer: 1 << 20})
	defer end()
	d := f.Driver(0)
	if d.Slots() != 2 || len(d.Buffer(1)) != 1<<20 {
		t.Errorf("%d slots of %d bytes", d.Slots(), len(d.Buffer(1)))
	}
	oneQueue(t, f, 0, 5)
}

// A slot is used alternately for all kinds of requests, with chains in between that use its
// descriptors: stale content of the ring never affects a request.
func TestSlotReused(t *testing.T) {
	for _, o := range []Options{{QueueSize: 4}, {QueueSize: 4, Refuse: FeatureIndirect}} {
		disk := newRAMDisk(diskSize)
		f, end := connect(t, disk, o)
		d := f.Driver(0)
		m := f.Memory()
		gpa, err := m.Alloc(HeaderSize+512+1, 64)
		test.Must(t, err)
		chain := []Segment{{Addr: gpa, Len: HeaderSize}, {Addr: gpa + HeaderSize, Len: 512,
			Write: true}, {Addr: gpa + HeaderSize + 512, Len: 1, Write: true}}
		for range 300 {
			n := (1 + rand.IntN(4)) * sectorSize
			sector := rand.Int64N(64)
			want := randomBytes(n)
			copy(d.Buffer(0), want)
			test.Must(t, test.Err(d.do(0, OpWrite, sector*sectorSize, n)))
			switch rand.IntN(4) {
			case 0:
				test.Must(t, d.Flush())
			case 1:
				PutHeader(m.Bytes(gpa, HeaderSize), OpRead, uint64(sector))
				test.Must(t, test.Err(d.DoChain(chain, 0)))
				if !bytes.Equal(m.Bytes(gpa+HeaderSize, 512), want[:512]) {
					t.Fatal("a chain read other data")
				}
			case 2:
				if id, err := d.GetID(); err != nil || id != "ram disk" {
					t.Fatal(id, err)
				}
			}
			clear(d.Buffer(0)[:n])
			if _, err := d.do(0, OpRead, sector*sectorSize, n); err != nil ||
				!bytes.Equal(d.Buffer(0)[:n], want) {
				t.Fatalf("read of %d bytes at sector %d: %v, or other data", n, sector, err)
			}
		}
		end()
	}
}

// Disconnect, from another goroutine, ends a wait.
func TestDisconnect(t *testing.T) {
	for _, poll := range []bool{false, true} {
		disk := newRAMDisk(diskSize)
		disk.ignoreRings = true
		f, wait := connectEnd(t, disk, Options{Poll: poll})
		if pid, err := f.PeerPID(); err != nil || pid != os.Getpid() {
			t.Errorf("back-end is process %d: %v", pid, err)
		}
		time.AfterFunc(10*time.Millisecond, func() { _ = f.Disconnect() })
		test.ErrorIs(t, f.Driver(0).Flush(), ErrDisconnected)
		test.Check(t, f.Abort())
		test.Check(t, wait())
	}
}

func TestStyleText(t *testing.T) {
	for _, s := range []Style{QEMU, SPDK} {
		text, err := s.MarshalText()
		var back Style
		if err == nil {
			err = back.UnmarshalText(text)
		}
		if err != nil || back != s {
			t.Errorf("%v is %q is %v; %v", s, text, back, err)
		}
	}
	if err := new(Style).UnmarshalText([]byte("xen")); err == nil {
		t.Error("an unknown style was accepted")
	}
	if Style(7).String() != "style 7" {
		t.Errorf("%v", Style(7))
	}
}
