package frontend

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"cowblk/internal/test"
)

// piece splits n bytes at a guest address into random segments.
func pieces(addr uint64, n int, write bool, most int) (out []Segment) {
	for n > 0 {
		k := n
		if len(out)+1 < most {
			k = 1 + rand.IntN(n)
		}
		out = append(out, Segment{Addr: addr, Len: uint32(k), Write: write})
		addr, n = addr+uint64(k), n-k
	}
	return out
}

// All layouts of a request are equivalent: header, data and status split and joined anywhere,
// across regions, with or without an indirect table.
func TestChains(t *testing.T) {
	disk := newRAMDisk(diskSize)
	f, end := connect(t, disk, Options{Regions: 3, Memory: 12 << 20, MaxTransfer: 512})
	defer end()
	d, m := f.Driver(0), f.Memory()
	meta, err := m.Alloc(HeaderSize, 1)
	test.Must(t, err)
	// The buffer, data and status in one, crosses the last boundary.
	boundary := m.Regions()[2].GuestAddr
	for range 500 {
		n := (1 + rand.IntN(64)) * sectorSize
		buf := boundary - uint64(rand.IntN(n))
		sector := rand.Uint64N(uint64(diskSize-n) / sectorSize)
		want := randomBytes(n)

		copy(m.Bytes(buf, uint64(n)), want)
		status := m.Bytes(buf+uint64(n), 1)
		status[0] = StatusNone
		PutHeader(m.Bytes(meta, HeaderSize), OpWrite, sector)
		segments := append(pieces(meta, HeaderSize, false, 5), pieces(buf, n, false, 20)...)
		segments = append(segments, Segment{Addr: buf + uint64(n), Len: 1, Write: true})
		written, err := d.DoChain(segments, rand.IntN(len(segments)+1))
		if err != nil || status[0] != StatusOK || written != 1 {
			t.Fatalf("write: %v, status %d, %d bytes", err, status[0], written)
		}
		disk.mu.Lock() // for the race detector; the ring orders it, too
		same := bytes.Equal(disk.data[sector*sectorSize:][:n], want)
		disk.mu.Unlock()
		if !same {
			t.Fatal("write: other data on the disk")
		}

		clear(m.Bytes(buf, uint64(n)))
		status[0] = StatusNone
		PutHeader(m.Bytes(meta, HeaderSize), OpRead, sector)
		segments = append(pieces(meta, HeaderSize, false, 5), pieces(buf, n+1, true, 20)...)
		written, err = d.DoChain(segments, rand.IntN(len(segments)+1))
		if err != nil || status[0] != StatusOK || written != uint32(n)+1 {
			t.Fatalf("read: %v, status %d, %d of %d bytes", err, status[0], written, n+1)
		}
		if got := m.Bytes(buf, uint64(n)); !bytes.Equal(got, want) {
			t.Fatal("read: other data in memory")
		}
	}
}

func TestChainLimits(t *testing.T) {
	f, end := connect(t, newRAMDisk(diskSize), Options{QueueSize: 8, Memory: 2 << 20,
		MaxTransfer: 512})
	defer end()
	d := f.Driver(0)
	test.ErrorIs(t, test.Err(d.SubmitChain(nil, 0)), ErrBusy, "empty chain")
	test.ErrorIs(t, test.Err(d.SubmitChain(make([]Segment, 9), 0)), ErrBusy,
		"nine segments in eight descriptors")
	test.ErrorIs(t, test.Err(d.SubmitChain(make([]Segment, 1<<17+1), 1<<17+1)), ErrNoMemory,
		"table larger than memory")
	test.ErrorIs(t, d.Submit(0, OpRead, 0, 1024), ErrNoMemory, "request larger than the buffer")
	test.Check(t, d.Flush(), "flush afterwards")
}

// The memory table is replaced while a ring runs.
func TestMemoryReplaced(t *testing.T) {
	f, end := connect(t, newRAMDisk(diskSize), Options{Regions: 2, Memory: 8 << 20})
	defer end()
	d := f.Driver(0)
	for i := range 20 {
		test.Must(t, test.Err(d.WriteAt(randomBytes(4096), int64(i)*4096)))
		test.Must(t, f.ShareMemory(f.Memory().Regions()...))
		last := f.Memory().Regions()[1]
		test.Must(t, f.RemoveRegion(last))
		test.Must(t, f.AddRegion(last))
	}
	// Without its ring's region the device cannot continue, and reports it.
	test.ErrorIs(t, f.RemoveRegion(f.Memory().Regions()[0]), ErrRefused, "removing the rings")
	test.Check(t, d.Flush())
}
