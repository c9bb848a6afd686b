package virtq_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/virtq"
)

const (
	next     = virtq.DescNext
	write    = virtq.DescWrite
	indirect = virtq.DescIndirect
)

// linked returns n one-byte descriptors, each linked to the next one.
func linked(n int, flags uint16) []virtq.Desc {
	ds := make([]virtq.Desc, n)
	for i := range ds {
		ds[i] = virtq.Desc{Addr: dataAddr, Len: 1, Flags: flags | next, Next: uint16(i + 1)}
	}
	ds[n-1].Flags = flags
	return ds
}

func TestLoad(t *testing.T) {
	text := test.Texts(t, "chain.texts")
	const gap = uint64(end)
	// ind refers to a table of n descriptors.
	ind := func(n int) virtq.Desc {
		return virtq.Desc{Addr: tableAddr, Len: uint32(16 * n), Flags: indirect}
	}
	for _, tc := range []struct {
		name     string
		ring     []virtq.Desc // descriptors 0, 1, … of a ring of 8; the head is 0
		table    []virtq.Desc // at tableAddr
		readable []int        // lengths of the slices
		writable []int
		bad      bool
	}{
		{name: "one readable", ring: []virtq.Desc{{dataAddr, 16, 0, 0}}, readable: []int{16}},
		{name: "one writable", ring: []virtq.Desc{{dataAddr, 16, write, 0}}, writable: []int{16}},
		{name: "next without its flag", ring: []virtq.Desc{{dataAddr, 16, 0, 99}},
			readable: []int{16}},
		{name: "unknown flags", ring: []virtq.Desc{{dataAddr, 16, 0xfff0, 0}}, readable: []int{16}},
		{name: "read, write", ring: []virtq.Desc{{dataAddr, 16, next, 5}, 5: {dataAddr, 32, write,
			0}}, readable: []int{16}, writable: []int{32}},
		{name: "as long as the ring", ring: linked(8, 0), readable: []int{1, 1, 1, 1, 1, 1, 1, 1}},
		{name: "backwards", ring: []virtq.Desc{{dataAddr, 1, next, 2}, {dataAddr, 3, 0, 0},
			{dataAddr, 2, next, 1}}, readable: []int{1, 2, 3}},
		{name: "across regions", ring: []virtq.Desc{{border - 16, 48, 0, 0}},
			readable: []int{16, 32}},
		{name: "all memory", ring: []virtq.Desc{{ringAddr, 2 * regionLen, write, 0}},
			writable: []int{regionLen, regionLen}},
		{name: "empty", ring: []virtq.Desc{{dataAddr, 0, 0, 0}}},
		{name: "empty, nowhere", ring: []virtq.Desc{{gap, 0, next, 1}, {dataAddr, 1, write, 0}},
			writable: []int{1}},

		{name: "loop to itself", ring: []virtq.Desc{{dataAddr, 1, next, 0}}, bad: true},
		{name: "loop of two", ring: []virtq.Desc{{dataAddr, 1, next, 1}, {dataAddr, 1, next, 0}},
			bad: true},
		{name: "loop of empty ones", ring: []virtq.Desc{{dataAddr, 0, next, 1},
			{dataAddr, 0, next, 1}}, bad: true},
		{name: "next beyond the ring", ring: []virtq.Desc{{dataAddr, 1, next, 8}}, bad: true},
		{name: "read after write", ring: []virtq.Desc{{dataAddr, 1, write | next, 1},
			{dataAddr, 1, 0, 0}}, bad: true},
		{name: "read after an empty write", ring: []virtq.Desc{{dataAddr, 0, write | next, 1},
			{dataAddr, 1, 0, 0}}, bad: true},
		{name: "outside", ring: []virtq.Desc{{gap, 1, 0, 0}}, bad: true},
		{name: "address 0", ring: []virtq.Desc{{0, 1, 0, 0}}, bad: true},
		{name: "runs outside", ring: []virtq.Desc{{gap - 16, 17, 0, 0}}, bad: true},
		{name: "longest", ring: []virtq.Desc{{dataAddr, 1<<32 - 1, write, 0}}, bad: true},
		{name: "address wraps", ring: []virtq.Desc{{1<<64 - 1, 2, 0, 0}}, bad: true},
		{name: "sum wraps", ring: []virtq.Desc{{1<<64 - 0x1000, 1<<32 - 1, 0, 0}}, bad: true},

		{name: "indirect", ring: []virtq.Desc{ind(3)}, table: []virtq.Desc{{dataAddr, 16, next, 2},
			{dataAddr, 1, write, 0}, {dataAddr, 512, write | next, 1}}, readable: []int{16},
			writable: []int{512, 1}},
		{name: "indirect, with the write flag", ring: []virtq.Desc{{tableAddr, 16, indirect | write,
			0}}, table: []virtq.Desc{{dataAddr, 16, 0, 0}}, readable: []int{16}},
		{name: "indirect after direct", ring: []virtq.Desc{{dataAddr, 8, next, 1}, ind(1)},
			table: []virtq.Desc{{dataAddr, 9, write, 0}}, readable: []int{8}, writable: []int{9}},
		{name: "indirect, longer than the ring", ring: []virtq.Desc{ind(1024)},
			table: linked(1024, write), writable: slices.Repeat([]int{1}, 1024)},
		{name: "indirect, from the middle of a table",
			ring: []virtq.Desc{{tableAddr + 16, 32, indirect, 0}}, table: linked(3, 0), bad: true},

		{name: "indirect, too long", ring: []virtq.Desc{ind(1025)}, table: linked(1025, 0),
			bad: true},
		{name: "indirect after direct, too long", ring: []virtq.Desc{{dataAddr, 8, next, 1},
			ind(1024)}, table: linked(1024, 0), bad: true},
		{name: "indirect, longest", ring: []virtq.Desc{{tableAddr, 1<<32 - 16, indirect, 0}},
			bad: true},
		{name: "indirect, empty", ring: []virtq.Desc{ind(0)}, bad: true},
		{name: "indirect, truncated", ring: []virtq.Desc{{tableAddr, 17, indirect, 0}}, bad: true},
		{name: "indirect, nested", ring: []virtq.Desc{ind(1)}, table: []virtq.Desc{ind(1)},
			bad: true},
		{name: "indirect, with next", ring: []virtq.Desc{{tableAddr, 16, indirect | next, 1},
			{dataAddr, 1, 0, 0}}, table: linked(1, 0), bad: true},
		{name: "indirect, loop", ring: []virtq.Desc{ind(2)},
			table: []virtq.Desc{{dataAddr, 1, next, 1}, {dataAddr, 1, next, 0}}, bad: true},
		{name: "indirect, next beyond the table", ring: []virtq.Desc{ind(2)},
			table: []virtq.Desc{{dataAddr, 1, next, 2}}, bad: true},
		{name: "indirect, outside", ring: []virtq.Desc{{gap, 16, indirect, 0}}, bad: true},
		{name: "indirect, across regions", ring: []virtq.Desc{{border - 16, 32, indirect, 0}},
			bad: true},
		{name: "indirect, read after a direct write", ring: []virtq.Desc{{dataAddr, 8, write | next,
			1}, ind(1)}, table: linked(1, 0), bad: true},
		{name: "indirect, data outside", ring: []virtq.Desc{ind(1)},
			table: []virtq.Desc{{gap, 1, 0, 0}}, bad: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, virtq.SplitConfig{Num: 8, Indirect: true})
			for i, d := range tc.ring {
				r.drv.SetDesc(uint16(i), d)
			}
			r.drv.WriteTable(tableAddr, tc.table)
			var c virtq.Chain
			err := r.q.Load(r.table, &c)
			if text(t, tc.name, err); tc.bad {
				if !errors.Is(err, virtq.ErrBroken) {
					t.Fatalf("error %v, expected ErrBroken", err)
				}
				if len(c.Readable)+len(c.Writable) > 0 || c.ReadLen+c.WriteLen > 0 {
					t.Error("a broken chain left something behind")
				}
				if _, _, again := r.q.Next(); again != err {
					t.Errorf("Next: error %v, expected the same", again)
				}
				return
			}
			test.Must(t, err)
			checkSegs(t, "readable", c.Readable, c.ReadLen, tc.readable)
			checkSegs(t, "writable", c.Writable, c.WriteLen, tc.writable)
		})
	}
}

func checkSegs(t *testing.T, name string, segs [][]byte, total uint64, want []int) {
	t.Helper()
	var got []int
	sum := 0
	for _, s := range segs {
		got = append(got, len(s))
		sum += len(s)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || uint64(sum) != total {
		t.Errorf("%s: %v, in all %d, expected %v", name, got, total, want)
	}
}

func TestLoadLimits(t *testing.T) {
	t.Run("indirect not negotiated", func(t *testing.T) {
		r := newRig(t, virtq.SplitConfig{Num: 8})
		r.drv.SetDesc(0, virtq.Desc{Addr: tableAddr, Len: 16, Flags: indirect})
		test.ErrorIs(t, r.q.Load(r.table, &virtq.Chain{}), virtq.ErrBroken)
	})
	t.Run("head beyond the ring", func(t *testing.T) {
		r := newRig(t, virtq.SplitConfig{Num: 8})
		test.ErrorIs(t, r.q.Load(r.table, &virtq.Chain{Head: 8}), virtq.ErrBroken)
	})
	t.Run("1024 descriptors of a large ring", func(t *testing.T) {
		r := newRig(t, virtq.SplitConfig{Num: 4096})
		for n, want := range map[int]error{1024: nil, 1025: virtq.ErrBroken} {
			for i, d := range linked(n, write) {
				r.drv.SetDesc(uint16(i), d)
			}
			r.restart(t)
			test.ErrorIs(t, r.q.Load(r.table, &virtq.Chain{}), want, n)
		}
	})
	t.Run("4 GiB", func(t *testing.T) {
		// The same 64 MiB again and again.
		ds := linked(64, write)
		for i := range ds {
			ds[i].Addr, ds[i].Len = ringAddr, 2*regionLen
		}
		const fits = 1<<32/(2*regionLen) - 1
		for n, want := range map[int]error{fits: nil, fits + 1: virtq.ErrBroken} {
			r := newRig(t, virtq.SplitConfig{Num: 8, Indirect: true})
			ds := slices.Clone(ds[:n])
			ds[n-1].Flags = write
			r.drv.WriteTable(tableAddr, ds)
			r.drv.SetDesc(0, virtq.Desc{Addr: tableAddr, Len: uint32(16 * n), Flags: indirect})
			var c virtq.Chain
			err := r.q.Load(r.table, &c)
			if !errors.Is(err, want) || err == nil && c.WriteLen != uint64(n)*2*regionLen {
				t.Errorf("%d descriptors: %d bytes, error %v", n, c.WriteLen, err)
			}
		}
	})
}

// An indirect table may have any address, even or odd.
func TestIndirectTableNotAligned(t *testing.T) {
	for off := range uint64(16) {
		r := newRig(t, virtq.SplitConfig{Num: 8, Indirect: true})
		r.drv.WriteTable(tableAddr+off, linked(3, write))
		r.drv.SetDesc(0, virtq.Desc{Addr: tableAddr + off, Len: 48, Flags: indirect})
		var c virtq.Chain
		if err := r.q.Load(r.table, &c); err != nil || c.WriteLen != 3 {
			t.Errorf("offset %d: %d bytes, error %v", off, c.WriteLen, err)
		}
	}
}

// A driver changes a descriptor continuously while it is read: any mixture of old and new is
// checked and used as one copy.
func TestLoadWhileTheDriverChangesIt(t *testing.T) {
	r := newRig(t, virtq.SplitConfig{Num: 8, Indirect: true})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r.drv.SetDesc(0, virtq.Desc{Addr: tableAddr, Len: 48, Flags: indirect})
			r.drv.SetDesc(0, virtq.Desc{Addr: end - 8, Len: 8, Flags: write})
			r.drv.WriteTable(tableAddr, []virtq.Desc{{Addr: end - 64, Len: 64, Flags: next,
				Next: uint16(i % 4)}, {Addr: border - 8, Len: 16}})
		}
	}()
	var c virtq.Chain
	loaded, broken := 0, 0
	for loaded+broken < 20000 || loaded == 0 || broken == 0 {
		if err := r.q.Load(r.table, &c); err != nil {
			broken++
			r.restart(t)
			continue
		}
		loaded++
		sum := uint64(0)
		for _, s := range slices.Concat(c.Readable, c.Writable) {
			sum += uint64(len(s))
		}
		if sum != c.ReadLen+c.WriteLen {
			t.Fatalf("%d bytes in the slices, lengths %d and %d", sum, c.ReadLen, c.WriteLen)
		}
	}
	close(stop)
	<-stopped
}

func TestDescriptorLayout(t *testing.T) {
	var p [16]byte
	virtq.Desc{Addr: 0x0102030405060708, Len: 0x11121314, Flags: 0x2122, Next: 0x3132}.Put(p[:])
	want := "08 07 06 05 04 03 02 01 14 13 12 11 22 21 32 31"
	if got := fmt.Sprintf("% x", p); got != want {
		t.Errorf("% x, expected %s", p, want)
	}
}
