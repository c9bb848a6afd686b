package faultfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"cowblk/cow/vfs"
	"cowblk/internal/test"
)

func create(t *testing.T, p *Process, name string) vfs.File {
	t.Helper()
	f, err := p.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	test.Must(t, err)
	return f
}

func put(t *testing.T, f vfs.File, b byte, off int64, n int) {
	t.Helper()
	test.Must(t, test.Err(f.WriteAt(bytes.Repeat([]byte{b}, n), off)))
}

// cut cuts the power and keeps none or all of the uncertain changes.
func cut(m *Machine, all bool) *Machine {
	return m.Cut(func(d *Device) Choice {
		c := Choice{Keep: make([]bool, len(d.Pending()))}
		for i := range c.Keep {
			c.Keep[i] = all
		}
		return c
	})
}

func TestWhatACutKeeps(t *testing.T) {
	m := New()
	m.Put("/d/old", bytes.Repeat([]byte{'o'}, 1024))
	m.Record()
	p := m.Process(nil)
	f := create(t, p, "/d/old")
	put(t, f, 'x', 0, 512)
	if got, _ := cut(m, false).Content("/d/old"); got[0] != 'o' {
		t.Error("a write was certain without a sync")
	}
	if got, _ := cut(m, true).Content("/d/old"); got[0] != 'x' || got[512] != 'o' {
		t.Error("a write was not kept")
	}
	test.Must(t, f.Datasync())
	put(t, f, 'y', 512, 512)
	if got, _ := cut(m, false).Content("/d/old"); got[0] != 'x' || got[512] != 'o' {
		t.Error("a sync made something else certain than what was written before")
	}

	g := create(t, p, "/d/new")
	put(t, g, 'n', 0, 512)
	test.Must(t, g.Datasync())
	test.ErrorIs(t, test.Err(cut(m, false).Content("/d/new")), os.ErrNotExist,
		"a name was certain without a sync of its directory")
	test.Must(t, p.SyncDir("/d"))
	if got, err := cut(m, false).Content("/d/new"); err != nil || len(got) != 512 || got[0] != 'n' {
		t.Errorf("file and name are synced and not there: %v", err)
	}
	test.Must(t, p.Rename("/d/new", "/d/old"))
	if got, _ := cut(m, false).Content("/d/old"); len(got) != 1024 {
		t.Error("a rename was certain without a sync of its directory")
	}
	after := cut(m, true)
	if got, _ := after.Content("/d/old"); len(got) != 512 {
		t.Error("a rename was not kept")
	}
	if _, err := after.Content("/d/new"); err == nil {
		t.Error("after a rename both names are there")
	}
}

// Every sector of every image has the old content or a later one, and every combination of two
// sectors occurs.
func TestSubsetsAndTearing(t *testing.T) {
	m := New()
	m.Put("/f", bytes.Repeat([]byte{'0'}, 1024))
	tape := m.Record()
	f := create(t, m.Process(nil), "/f")
	for _, b := range []byte("12") {
		put(t, f, b, 0, 1024)
	}
	d := tape.Play()
	for _, r := range tape.Records {
		d.Apply(r)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	seen := map[string]bool{}
	for range 400 {
		got, err := d.Image(d.Random(rng)).Content("/f")
		test.Must(t, err)
		for i := range got {
			if got[i] != got[i/512*512] {
				t.Fatalf("byte %d: a sector is torn", i)
			}
		}
		seen[string([]byte{got[0], got[512]})] = true
	}
	if len(seen) != 9 {
		t.Errorf("expected 9 combinations, found %v", seen)
	}
	choices := d.Choices(rng, 10, 3)
	kept := map[string]bool{}
	for _, c := range choices {
		if kept[c.String()] {
			t.Errorf("choice %s is there twice", c)
		}
		kept[c.String()] = true
	}
	for _, want := range []string{"--", "KK", "K-", "-K"} {
		if !kept[want] {
			t.Errorf("choice %s is missing", want)
		}
	}
}

// A failed sync loses its content, and the next one succeeds.
func TestFailedSyncDropsPages(t *testing.T) {
	for through, want := range map[Through]byte{Nothing: 'o', All: 'x'} {
		m := New()
		m.Put("/f", bytes.Repeat([]byte{'o'}, 512))
		m.Record()
		fail := true
		f := create(t, m.Process(func(c Call) Fault {
			if c.Op == "sync" && fail {
				return Fault{Err: syscall.EIO, Through: through}
			}
			return Fault{}
		}), "/f")
		put(t, f, 'x', 0, 512)
		if err := f.Datasync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("expected EIO, found %v", err)
		}
		fail = false
		test.Must(t, f.Datasync())
		if got, _ := m.Content("/f"); got[0] != 'x' {
			t.Error("what is lost cannot be read any more")
		}
		if got, _ := cut(m, true).Content("/f"); got[0] != want {
			t.Errorf("through %d: expected %c, found %c", through, want, got[0])
		}
	}
}

func TestKilledProcess(t *testing.T) {
	m := New()
	p := m.Process(nil)
	f := create(t, p, "/f")
	test.Must(t, f.Lock(true))
	put(t, f, 'x', 0, 512)
	other := create(t, m.Process(nil), "/f")
	test.ErrorIs(t, other.Lock(false), vfs.ErrLocked)
	p.Kill()
	test.ErrorIs(t, test.Err(f.WriteAt([]byte{'y'}, 0)), ErrDead)
	test.Must(t, other.Lock(true))
	if got, _ := m.Content("/f"); got[0] != 'x' {
		t.Error("what a dead process has written is gone")
	}
}

func TestHolesAndShortTransfers(t *testing.T) {
	m := New()
	p := m.Process(func(c Call) Fault {
		if c.Op == "write" && c.Len > 4096 {
			return Fault{Short: 512}
		}
		return Fault{}
	})
	f := create(t, p, "/f")
	test.Must(t, f.Truncate(64<<10))
	put(t, f, 'x', 16384, 4096)
	start, end, err := f.NextData(0)
	if err != nil || start != 16384 || end != 20480 {
		t.Errorf("data: %d to %d, %v", start, end, err)
	}
	test.Must(t, f.PunchHole(16384, 4096))
	if _, _, err := f.NextData(0); err == nil {
		t.Error("a hole is data")
	}
	buf := make([]byte, 8192)
	v := vfs.Iovec{Base: &buf[0]}
	v.SetLen(len(buf))
	if n, err := f.Pwritev([]vfs.Iovec{v}, 0); n != 512 || err != nil {
		t.Errorf("short write: %d, %v", n, err)
	}
	if n, err := f.ReadAt(buf, 60<<10); n != 4096 || err == nil {
		t.Errorf("read over the end: %d, %v", n, err)
	}
}

// A remount loses the same as a power cut, except files in memory; it is the same run of the
// machine, and another instance of the file system.
func TestRemount(t *testing.T) {
	m := New()
	m.Put("/f", []byte{'o'})
	m.Record()
	p := m.Process(nil)
	f := create(t, p, "/f")
	put(t, f, 'x', 0, 1)
	test.Must(t, p.MakeSharedDir("/run/d"))
	s, err := p.OpenShared("/run/d/s", os.O_RDWR|os.O_CREATE, 0o600)
	test.Must(t, err)
	test.Must(t, s.Truncate(4096))
	mem, err := s.MapShared(2, true)
	test.Must(t, err)
	mem.Words[1] = 7
	names := func(m *Machine) [2]string {
		p := m.Process(nil)
		boot, err := p.Boot()
		test.Must(t, err)
		instance, err := p.Instance(create(t, p, "/f"))
		test.Must(t, err)
		return [2]string{boot, instance}
	}
	before, moment := names(m), m.Clone()
	mem.Words[1] = 8
	var after *Machine
	m.Cut(func(d *Device) Choice {
		none := Choice{Keep: make([]bool, len(d.Pending()))}
		after = d.Remount(none, moment)
		return none
	})
	if got, _ := after.Content("/f"); got[0] != 'o' {
		t.Error("a write that was not synced has survived")
	}
	if got := names(after); got[0] != before[0] || got[1] == before[1] {
		t.Errorf("run and instance: %q after %q", got, before)
	}
	q := after.Process(nil)
	s, err = q.OpenShared("/run/d/s", os.O_RDWR, 0)
	test.Must(t, err)
	if mem, err = s.MapShared(2, true); err != nil || mem.Words[1] != 7 {
		t.Errorf("what was mapped: %v, %v", mem, err)
	}
	again := after.Clone()
	if third := names(again.Record().Play().Remount(Choice{}, again)); third[0] != before[0] ||
		third[1] == names(after)[1] {
		t.Errorf("after the second remount: %q", third)
	}
}

// Calls that a full file system would refuse have Space set.
func TestCallsThatNeedSpace(t *testing.T) {
	m := New()
	var last Call
	p := m.Process(func(c Call) Fault { last = c; return Fault{} })
	f := create(t, p, "/f")
	expect := func(space bool) {
		t.Helper()
		test.Equal(t, last.Space, space, "space", last)
	}
	expect(true)
	create(t, p, "/f")
	expect(false)
	test.Must(t, f.Truncate(16384))
	expect(false)
	put(t, f, 'x', 4096, 4096)
	expect(true)
	put(t, f, 'x', 4096, 4096)
	expect(false)
	put(t, f, 'x', 8000, 512)
	expect(true)
	put(t, f, 'x', 16384, 1)
	expect(true)
	test.Must(t, p.MkdirAll("/d", 0o755))
	test.Must(t, f.Datasync())
	expect(false)
}

// A killed process leaves what it has stored in a mapping and does not affect others: their stores
// stay shared.
func TestKilledBesideAMapping(t *testing.T) {
	m := New()
	words := func(p *Process, name string) []uint64 {
		test.Must(t, p.MakeSharedDir("/run"+"/d"))
		f, err := p.OpenShared("/run/d/"+name, os.O_RDWR|os.O_CREATE, 0o600)
		test.Must(t, err)
		test.Must(t, f.Truncate(4096))
		mem, err := f.MapShared(1, true)
		test.Must(t, err)
		return mem.Words
	}
	p, q := m.Process(nil), m.Process(nil)
	mine, other := words(p, "p"), words(q, "q")
	mine[0], other[0] = 1, 2
	q.Kill()
	mine[0], other[0] = 3, 4
	r := m.Process(nil)
	if got := words(r, "p")[0]; got != 3 {
		t.Errorf("of a living process: expected 3, found %d", got)
	}
	if got := words(r, "q")[0]; got != 2 {
		t.Errorf("of a dead process: expected 2, found %d", got)
	}
}

// Content that a failed sync has lost is gone after DropCache; dirty content is not.
func TestDropCache(t *testing.T) {
	m := New()
	m.Put("/f", bytes.Repeat([]byte{'o'}, 1536))
	m.Record()
	fail := true
	f := create(t, m.Process(func(c Call) Fault {
		if c.Op == "sync" && fail {
			return Fault{Err: syscall.EIO, Through: Nothing}
		}
		return Fault{}
	}), "/f")
	put(t, f, 'x', 0, 512)
	if err := f.Datasync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("expected EIO, found %v", err)
	}
	put(t, f, 'y', 512, 512)
	test.Must(t, f.DropCache())
	if got, _ := m.Content("/f"); got[0] != 'o' || got[512] != 'y' || got[1024] != 'o' {
		t.Errorf("expected o, y, o, found %c, %c, %c", got[0], got[512], got[1024])
	}
	put(t, f, 'z', 0, 512)
	fail = false
	test.Must(t, f.Datasync())
	if got, _ := cut(m, false).Content("/f"); got[0] != 'z' || got[512] != 'y' {
		t.Errorf("expected z and y, found %c and %c", got[0], got[512])
	}
}

// A machine with little free space refuses what needs more, and counts what is freed.
func TestFreePages(t *testing.T) {
	m := New()
	p := m.Process(nil)
	if _, err := p.Free("/"); err == nil {
		t.Error("without a limit: expected an error")
	}
	m.SetFreePages(4)
	f, err := p.OpenFile("/a", os.O_RDWR|os.O_CREATE, 0o600) // 1
	test.Must(t, err)
	if _, err := f.WriteAt(make([]byte, 5000), 0); err != nil { // 2
		t.Fatal(err)
	}
	// up to the end of the second page
	if _, err := f.WriteAt(make([]byte, 3192), 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 8192), 8192); !errors.Is(err, ErrFull) ||
		!errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write of two pages with one free: %v", err)
	}
	if free, err := p.Free("/"); free != 4096 || err != nil {
		t.Errorf("free: %d, %v", free, err)
	}
	if err := f.PunchHole(0, 4096); err != nil || m.FreePages() != 2 {
		t.Errorf("after a hole: %d pages, %v", m.FreePages(), err)
	}
	// the other page is there
	if err := f.(*file).Reserve(0, 8192); err != nil || m.FreePages() != 1 {
		t.Errorf("after a reservation: %d pages, %v", m.FreePages(), err)
	}
	test.Must(t, p.Mkdir("/d", 0o700))
	test.ErrorIs(t, p.Mkdir("/e", 0o700), ErrFull, "a name without space")
	if err := p.Remove("/a"); err != nil || m.FreePages() != 3 {
		t.Errorf("after the removal: %d pages, %v", m.FreePages(), err)
	}
	if c := m.Clone(); c.FreePages() != -1 {
		t.Error("a copy has a limit")
	}
}
