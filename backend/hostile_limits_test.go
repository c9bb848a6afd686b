package backend

import (
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/backendtest"
	"cowblk/backend/loglimit"
	"cowblk/eventfd"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/virtqtest"
)

// A guest keeps as many requests in flight as its rings take, each with the longest chain that
// there is. They wait for the disk; what they cost must not depend on how many there are.
func TestLongChainsInFlightAreBounded(t *testing.T) {
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	const num = 1024
	mem, err := virtqtest.NewMemory(virtqtest.Layout(atkBase, 1<<20, 16<<20)...)
	test.Must(t, err)
	test.Must(t, a.mem.Close())
	a.mem = mem
	a.ring, err = virtqtest.NewRing(mem, num, atkBase)
	test.Must(t, err)
	// 1,022 segments of a sector each, then the status, in one indirect table that all requests
	// share.
	const table, data = atkBase + 1<<20, atkBase + 2<<20
	header := mem.Bytes(table+1<<16, 16)
	putHeader(header, blk.TypeOut, 0)
	ds := []virtq.Desc{{Addr: table + 1<<16, Len: 16}}
	for i := range uint64(1022) {
		ds = append(ds, virtq.Desc{Addr: data + 512*i, Len: 512})
	}
	ds = append(ds, virtq.Desc{Addr: table + 1<<16 + 64, Len: 1, Flags: virtq.DescWrite})
	for i := range ds[:len(ds)-1] {
		ds[i].Flags |= virtq.DescNext
		ds[i].Next = uint16(i + 1)
	}
	a.ring.WriteTable(table, ds)
	for i := range uint16(num) {
		a.ring.SetDesc(i, virtq.Desc{Addr: table, Len: uint32(len(ds) * virtq.DescSize),
			Flags: virtq.DescIndirect})
		a.ring.SetAvail(i, i)
	}
	// Write-through: each waits for a flush round, many at a time.
	a.negotiate()
	a.tell(vhost.SetConfig, vhost.ConfigSpace{Offset: blk.WritebackOffset, Size: 1,
		Data: []byte{0}}.Append(nil))
	a.setRing()
	a.tell(vhost.SetVringKick, u64(0), a.kick)
	before := heap()
	a.ring.SetAvailIdx(num)
	_ = eventfd.Signal(a.kick)
	most := uint64(0)
	a.until(func() bool {
		most = max(most, heap())
		return a.ring.UsedIdx() == num
	})
	after := heap()
	const one = 1024 * 24 // bytes of slices
	if limit := before + num*one/2; most > limit {
		t.Errorf("heap: %d KiB at most, expected up to %d with %d chains in flight", most>>10,
			limit>>10, num)
	}
	if after > before+one*8 {
		t.Errorf("heap: %d KiB afterwards, %d before", after>>10, before>>10)
	}
	t.Logf("heap: %d KiB before, %d at most, %d afterwards; unbounded it would be %d", before>>10,
		most>>10, after>>10, (before+num*one)>>10)
}

// heap returns the bytes of live objects.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// resident returns the process's resident bytes.
func resident(t testing.TB) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	test.Must(t, err)
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	test.Must(t, err)
	return pages * int64(os.Getpagesize())
}

// growth measures what an attack leaves behind.
type growth struct {
	t        testing.TB
	to       *target
	heap     uint64
	resident int64
	files    []string
	start    time.Time
	routines int
}

func startGrowth(t testing.TB, to *target) *growth {
	g := &growth{t: t, to: to, heap: heap(), files: openFiles(t), start: time.Now()}
	g.routines = runtime.NumGoroutine()
	g.resident = resident(t)
	return g
}

// check fails the test if n hostile acts have left more than a little: none of the limits depends
// on n.
func (g *growth) check(n int, what string, texts int64) {
	g.t.Helper()
	dropGarbage()
	took := time.Since(g.start)
	lines, text := g.to.log.lines.Load(), g.to.log.bytes.Load() // since the beginning
	grown, rss := int64(heap())-int64(g.heap), resident(g.t)-g.resident
	if limit := texts * (loglimit.Burst + 1 + int64(took/loglimit.Interval)); lines > limit {
		g.t.Errorf("%d lines of log, expected at most %d", lines, limit)
	}
	if grown > 1<<20 {
		g.t.Errorf("the heap has grown by %d KiB", grown>>10)
	}
	if rss > 64<<20 {
		g.t.Errorf("the process has grown by %d MiB", rss>>20)
	}
	if n := runtime.NumGoroutine(); n > g.routines+4 {
		g.t.Errorf("%d goroutines, %d before", n, g.routines)
	}
	sameFiles(g.t, g.files)
	g.t.Logf("%d %s in %v: %d lines of log (%d bytes), heap %+d KiB, resident %+d KiB, descriptors %+d",
		n, what, took.Round(time.Millisecond), lines, text, grown>>10, rss>>10,
		len(openFiles(g.t))-len(g.files))
}

// A front-end that connects, breaks the protocol with descriptors in its hands, and comes back.
func TestReconnectingInALoop(t *testing.T) {
	const rounds = 3000
	to := newTarget(t, targetDisk, DeviceOptions{})
	socket := filepath.Join(t.TempDir(), "s")
	defer backendtest.Serve(t, socket, to.dev, loglimit.New(slog.New(to.log)))()
	memfd, err := unix.MemfdCreate("reconnecting", unix.MFD_CLOEXEC)
	test.Must(t, err)
	defer unix.Close(memfd)
	var g *growth
	for i := range rounds {
		if i == 100 {
			g = startGrowth(t, to)
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		test.Must(t, err)
		test.Must(t, c.SetDeadline(time.Now().Add(patience)))
		head := vhost.Header{Request: vhost.Request(i % 60), Flags: vhost.FlagVersion,
			Size: uint32(i)}.Append(nil)
		_, _, err = c.WriteMsgUnix(head, unix.UnixRights(memfd, memfd, memfd), nil)
		test.Must(t, err)
		test.Must(t, c.CloseWrite())
		var b [64]byte
		for err == nil {
			_, err = c.Read(b[:]) // until the session has ended
		}
		test.Must(t, c.Close())
	}
	g.check(rounds-100, "connections", 3)
	if n := to.dev.Stats().Rejected; n < rounds*9/10 || n > rounds {
		t.Errorf("%d rejected connections counted", n)
	}
}

// A guest that breaks its queue, resets and breaks it again.
func TestBreakingInALoop(t *testing.T) {
	const rounds = 2000
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	a.run()
	var g *growth
	for i := range rounds {
		if i == 100 {
			g = startGrowth(t, to)
		}
		a.offer(atkNum)
		a.broke()
		a.restart()
	}
	g.check(rounds-100, "broken queues", 1)
	test.Equal(t, to.dev.Stats().Broken, rounds, "broken queues counted")
}

// A million requests that are refused, each for a reason of its guest's.
func TestMillionBadRequests(t *testing.T) {
	const rounds = 1_000_000 / atkNum
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	a.run()
	for i := range uint16(atkNum) {
		typ, sector := uint32(blk.TypeIn), uint64(targetDisk) // beyond the end
		if i%2 == 0 {
			typ = 1000 + uint32(i)
		}
		ds := a.request(uint64(i), typ, sector, virtq.Desc{Addr: atkData, Len: 512,
			Flags: virtq.DescWrite})
		for k := range ds[:len(ds)-1] {
			ds[k].Flags |= virtq.DescNext
			ds[k].Next = uint16(k + 1)
		}
		a.ring.WriteTable(atkTable+0x100*uint64(i), ds)
		a.ring.SetDesc(i, virtq.Desc{Addr: atkTable + 0x100*uint64(i), Len: 48,
			Flags: virtq.DescIndirect})
		a.ring.SetAvail(i, i)
	}
	g := startGrowth(t, to)
	for i := range rounds {
		a.ring.SetAvailIdx(uint16(i+1) * atkNum)
		_ = eventfd.Signal(a.kick)
		if a.outcome(uint16(i+1) * atkNum) {
			t.Fatal(to.log.text())
		}
	}
	g.check(rounds*atkNum, "bad requests", 0)
	test.Equal(t, to.dev.Stats().Refused, rounds*atkNum, "refused requests counted")
}

// Messages that are refused with an answer, and settings that go to and fro.
func TestBadMessagesInALoop(t *testing.T) {
	const rounds = 20_000
	to := newTarget(t, targetDisk, DeviceOptions{})
	a := newAttacker(t, to)
	a.run()
	g := startGrowth(t, to)
	for i := range uint32(rounds) {
		if a.ask(vhost.SetVringNum, vringState(1, i<<1|1<<20)) == 0 || a.ask(vhost.SetVringCall,
			u64(0), a.mem.FDs()[0]) == 0 {
			t.Fatal("a bad message was obeyed")
		}
		a.tell(vhost.SetConfig, vhost.ConfigSpace{Offset: blk.WritebackOffset, Size: 1,
			Data: []byte{byte(i & 1)}}.Append(nil))
	}
	g.check(3*rounds, "messages", 2)
}

// A front-end that says nothing and goes, one that stops in the middle, one that floods: the worst
// that they do to a healthy disk beside them is to use the processor. How long the healthy disk's
// requests took is shown, not judged.
func TestHealthyDiskBesideAttackers(t *testing.T) {
	const long = 4 * time.Second
	crowd := newCrowd(t, 0)
	quiet := crowd.reads.Load()
	time.Sleep(long / 4)
	quiet = (crowd.reads.Load() - quiet) * 4
	t.Logf("alone: %d requests in %v, slowest %v", quiet, long,
		time.Duration(crowd.slowest.Swap(0)))
	for name, attack := range map[string]func(a *attacker, i int){
		"kicks without end": func(a *attacker, _ int) { _ = eventfd.Signal(a.kick) },
		"breaking and restarting": func(a *attacker, _ int) {
			a.offer(atkNum)
			a.broke()
			a.restart()
		},
		"reconnecting": func(a *attacker, _ int) {
			a.raw(binary.LittleEndian.AppendUint64(nil, 1<<63), a.mem.FDs()...)
			a.leave()
			a.connect()
		},
		"requests of the largest size": func(a *attacker, _ int) {
			used := a.ring.UsedIdx()
			var parts []virtq.Desc
			for range 12 {
				parts = append(parts, virtq.Desc{Addr: atkData, Len: 0x20000,
					Flags: virtq.DescWrite})
			}
			a.link(0, a.request(0, blk.TypeIn, 0, parts...))
			a.offer(0)
			a.outcome(used + 1)
		},
		"memory that comes and goes": func(a *attacker, i int) {
			a.cut(1, 0)
			a.offer(0)
			a.cut(1, atkRegion)
			if a.to.dev.Stats().Broken > uint64(i) {
				a.restart()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttacker(t, newTarget(t, targetDisk, DeviceOptions{}))
			a.run()
			before, acts := crowd.reads.Load(), 0
			for start := time.Now(); time.Since(start) < long/4; acts++ {
				attack(a, acts)
			}
			crowd.check(t)
			reads := crowd.reads.Load() - before
			t.Logf("%d acts; %d healthy requests, slowest %v", acts, reads,
				time.Duration(crowd.slowest.Swap(0)))
			if reads == 0 {
				t.Error("the healthy disk stood still")
			}
		})
	}
}
