package frontend

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost"
)

const diskSize = 8 << 20

// All kinds of rings and front-ends transfer the same data.
func TestDriver(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"default", Options{}},
		{"four queues", Options{Queues: 4}},
		{"three regions", Options{Queues: 4, Regions: 3, Memory: 12 << 20}},
		{"forty regions", Options{Regions: 40, Memory: 80 << 20}},
		{"acknowledged", Options{Queues: 2, AckAll: true}},
		{"no indirect", Options{Refuse: FeatureIndirect}},
		{"no event index", Options{Refuse: FeatureEventIdx}},
		{"neither", Options{Refuse: FeatureIndirect | FeatureEventIdx, QueueSize: 64}},
		{"polling", Options{Poll: true}},
		{"no kick", Options{NoKick: true}},
		{"SPDK", Options{Style: SPDK, Poll: true, Queues: 2}},
		{"oldest", Options{NoProtocol: true}},
		{"one descriptor", Options{QueueSize: 1}},
		{"two descriptors", Options{QueueSize: 2}},
		{"four descriptors, no indirect", Options{QueueSize: 4, Refuse: FeatureIndirect}},
		{"1024 descriptors", Options{QueueSize: 1024}},
		{"pages", Options{MaxTransfer: 4096}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, end := connect(t, newRAMDisk(diskSize), c.o)
			defer end()
			if n := f.Capacity(); n != diskSize && !c.o.NoProtocol {
				t.Errorf("capacity %d, expected %d", n, diskSize)
			}
			allQueues(t, f, 20)
			for range 2 {
				test.Must(t, f.Stop())
				test.Must(t, f.Cont())
				allQueues(t, f, 3)
			}
			for range 2 {
				test.Must(t, f.Reset())
				allQueues(t, f, 3)
			}
		})
	}
}

func allQueues(t *testing.T, f *Frontend, rounds int) {
	t.Helper()
	var wg sync.WaitGroup
	for q := range f.drivers {
		wg.Go(func() { oneQueue(t, f, q, rounds) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// oneQueue works on its own part of the disk.
func oneQueue(t *testing.T, f *Frontend, q, rounds int) {
	d, part := f.Driver(q), int64(diskSize/len(f.drivers))
	for range rounds {
		p := randomBytes((1 + rand.IntN(600)) * sectorSize)
		off := int64(q)*part + rand.Int64N((part-int64(len(p)))/sectorSize)*sectorSize
		if _, err := d.WriteAt(p, off); err != nil {
			t.Errorf("write: %v", err)
			return
		}
		got := make([]byte, len(p))
		if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
			t.Errorf("read of %d bytes at %d: %v, or other data", len(p), off, err)
			return
		}
		has := func(feature uint64) bool { return f.Features()&feature != 0 }
		if has(FeatureFlush) {
			test.Check(t, d.Flush(), "flush")
		}
		zero := Range{Off: off, Len: int64(len(p)), Unmap: true}
		if has(FeatureWriteZeroes) {
			test.Check(t, d.WriteZeroes(zero), "write zeroes")
		}
		if has(FeatureDiscard) {
			test.Check(t, d.Discard(Range{Off: off, Len: int64(len(p))}), "discard")
		}
		if _, err := d.ReadAt(got, off); err != nil || (has(FeatureWriteZeroes) &&
			!bytes.Equal(got, make([]byte, len(p)))) {
			t.Errorf("read of zeroed %d bytes at %d: %v, or other data", len(p), off, err)
		}
	}
	if id, err := d.GetID(); err != nil || id != "ram disk" {
		t.Errorf("ID %q, %v", id, err)
	}
	var status *StatusError
	if _, err := d.ReadAt(make([]byte, sectorSize), diskSize); !errors.As(err, &status) ||
		status.Status != StatusIOErr {
		t.Errorf("read beyond the end: %v, expected IOERR", err)
	}
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return p
}

// Many requests in flight, each of which checks its data; more than 2^16 of them, so that all
// indexes wrap.
func TestDepth(t *testing.T) {
	for _, o := range []Options{
		{QueueSize: 16}, {QueueSize: 16, Poll: true},
		{QueueSize: 16, Refuse: FeatureEventIdx | FeatureIndirect},
	} {
		disk := newRAMDisk(diskSize)
		for i := range disk.data {
			disk.data[i] = byte(i / sectorSize)
		}
		f, end := connect(t, disk, o)
		d := f.Driver(0)
		sectors := make([]int64, d.Slots())
		submit := func(slot int) {
			sectors[slot] = rand.Int64N(diskSize / sectorSize)
			test.Must(t, d.Submit(slot, OpRead, sectors[slot]*sectorSize, sectorSize))
		}
		for slot := range sectors {
			submit(slot)
		}
		test.ErrorIs(t, d.Submit(0, OpRead, 0, sectorSize), ErrBusy, "slot in flight")
		var done []Completion
		for n := 0; n < 70_000; {
			test.Must(t, d.Kick())
			test.Must(t, d.Wait())
			done = d.Poll(done[:0])
			for _, c := range done {
				if b := d.Buffer(c.ID); c.Status != StatusOK || b[0] != byte(sectors[c.ID]) ||
					b[511] != byte(sectors[c.ID]) {
					t.Fatalf("sector %d: status %d, content %d", sectors[c.ID], c.Status, b[0])
				}
				n++
				submit(c.ID)
			}
		}
		if n := d.CallPending(); o.Poll && n > 3 {
			t.Errorf("%d calls although the driver polls", n)
		}
		end()
	}
}

// A synchronous method leaves the completions of other requests to Poll.
func TestStash(t *testing.T) {
	f, end := connect(t, newRAMDisk(diskSize), Options{QueueSize: 4})
	defer end()
	d := f.Driver(0)
	for slot := range 3 {
		test.Must(t, d.Submit(slot, OpRead, 0, sectorSize))
	}
	for range 3 {
		test.Must(t, d.Flush())
	}
	seen := map[int]bool{}
	for len(seen) < 3 {
		test.Must(t, d.Wait())
		for _, c := range d.Poll(nil) {
			if seen[c.ID] {
				t.Errorf("slot %d completed twice", c.ID)
			}
			seen[c.ID] = true
		}
	}
	if d.InFlight() != 0 {
		t.Errorf("%d in flight, expected none", d.InFlight())
	}
}

func TestNoAllocation(t *testing.T) {
	// Not polling, because AllocsPerRun leaves one processor for both sides.
	for _, o := range []Options{{}, {Refuse: FeatureIndirect | FeatureEventIdx}} {
		disk := newRAMDisk(diskSize)
		disk.null = true
		f, end := connect(t, disk, o)
		d := f.Driver(0)
		done := make([]Completion, 0, d.Slots())
		n := testing.AllocsPerRun(200, func() {
			for slot := range 8 {
				test.Must(t, d.Submit(slot, OpWrite, int64(slot)*4096, 4096))
			}
			test.Must(t, d.Kick())
			for d.InFlight() > 0 {
				test.Must(t, d.Wait())
				done = d.Poll(done[:0])
			}
		})
		if n != 0 {
			t.Errorf("%v allocations for eight requests, expected none", n)
		}
		end()
	}
}

func TestWaitErrors(t *testing.T) {
	t.Run("deaf device", func(t *testing.T) {
		disk := newRAMDisk(diskSize)
		disk.ignoreRings = true
		for _, poll := range []bool{false, true} {
			f, end := connect(t, disk, Options{Timeout: 50 * time.Millisecond, Poll: poll})
			test.ErrorIs(t, f.Driver(0).Flush(), ErrTimeout, poll)
			end()
		}
	})
	t.Run("broken ring", func(t *testing.T) {
		f, end := connect(t, newRAMDisk(diskSize), Options{Queues: 2})
		defer end()
		d := f.Driver(0)
		d.Ring().SetAvailIdx(d.Ring().AvailIdx() + 1000)
		test.Must(t, d.kickAlways())
		test.ErrorIs(t, d.Wait(), ErrQueueBroken)
		test.Check(t, f.Driver(1).Flush(), "the other ring")
	})
	t.Run("back-end gone", func(t *testing.T) {
		disk := newRAMDisk(diskSize)
		disk.ignoreRings = true
		f, _ := connect(t, disk, Options{})
		// A bad message makes the back-end close the connection.
		test.Must(t, f.Send(99, vhost.FlagVersion, nil))
		test.ErrorIs(t, f.Driver(0).Flush(), ErrDisconnected)
		test.Check(t, f.Abort())
	})
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Queues: -1}, {Queues: 300}, {QueueSize: 3}, {Memory: -1},
		{Regions: -1}} {
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("%+v: accepted", o)
		}
	}
	if _, err := Dial("/nonexistent/socket", Options{}); err == nil {
		t.Error("connected to nothing")
	}
}

// However a front-end ends, its descriptors and mappings are released.
func TestNothingLeaks(t *testing.T) {
	count := func() (n int) {
		t.Helper()
		entries, err := os.ReadDir("/proc/self/fd")
		maps, merr := os.ReadFile("/proc/self/maps")
		if err != nil || merr != nil {
			t.Fatal(err, merr)
		}
		return len(entries) + 1000*bytes.Count(maps, []byte("/memfd:guest"))
	}
	before := count()
	for range 3 {
		_, end := connect(t, newRAMDisk(diskSize), Options{Queues: 3, Regions: 2})
		end()
		f, wait := connectEnd(t, newRAMDisk(diskSize), Options{Queues: 3})
		test.Check(t, f.Abort())
		test.Check(t, wait())
		for _, o := range []Options{{Queues: 5}, {Regions: 1000, Memory: 1},
			{Memory: 2 << 20, MaxTransfer: 1 << 20}, {QueueSize: 3}} {
			f, wait := connectEnd(t, newRAMDisk(diskSize), o)
			if f != nil {
				t.Errorf("%+v: connected, expected an error", o)
			}
			test.Check(t, wait())
		}
	}
	test.Equal(t, count(), before, "descriptors + 1000 × mappings")
}
