package cow_test

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"cowblk/cow"
	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/internal/test"
)

// machineDisk is a disk of a machine in memory that records the calls of each process.
type machineDisk struct {
	*faultfs.Machine
	spec cow.Spec

	mu  sync.Mutex
	ops []string // calls on the files of the disk that wait for a device, and writes
}

func newMachineDisk(t *testing.T, size int64) *machineDisk {
	t.Helper()
	m := &machineDisk{Machine: faultfs.New(),
		spec: cow.Spec{Layers: []layer.Paths{{Map: "/d/map", Data: "/d/data"}}}}
	p := m.Process(nil)
	test.Must(t, errors.Join(p.MkdirAll("/d", 0o700), p.MakeSharedDir("/run/x")))
	l, err := layer.CreateHead(p, m.spec.Layers[0], layer.CreateParams{Size: size, BlockSize: 4096})
	test.Must(t, err)
	test.Must(t, l.Close())
	return m
}

// open opens the disk in a process of its own.
func (m *machineDisk) open(t *testing.T, o cow.Options) (*cow.Disk, *faultfs.Process) {
	t.Helper()
	p := m.Process(func(c faultfs.Call) faultfs.Fault {
		m.mu.Lock()
		defer m.mu.Unlock()
		if (c.Op == "write" || c.Op == "sync") && strings.HasPrefix(c.Name, "/d/") {
			m.ops = append(m.ops, c.Op+" "+c.Name[3:])
		}
		return faultfs.Fault{}
	})
	o.FS = p
	d, err := cow.Open(m.spec, o)
	test.Must(t, err)
	return d, p
}

// taken returns the calls since the last taken.
func (m *machineDisk) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	ops := m.ops
	m.ops = nil
	return ops
}

// A detached disk continues in the next process as it was: nothing is synced or written in between,
// and the next process makes everything durable, data first.
func TestDetachAndReopen(t *testing.T) {
	m := newMachineDisk(t, 1<<30+512)
	o := cow.Options{SharedDir: "/run/x"}
	d, _ := m.open(t, o)
	write(t, d, 'b', 4096, 4096)
	test.Must(t, d.Flush())
	write(t, d, 'c', 8192, 512)      // the rest of the block is zeros
	write(t, d, 'd', 1<<30, 512)     // the partial last block
	write(t, d, 'e', 1<<29, 64*4096) // a whole word of the map
	write(t, d, 'f', 1<<28, 70*4096) // and more
	m.taken()
	if detached, err := d.Detach(); !detached || err != nil {
		t.Fatal(detached, err)
	}
	test.ErrorIs(t, test.Err(d.Detach()), cow.ErrClosed, "detached twice")
	check := func(d *cow.Disk) {
		t.Helper()
		want(t, d, 'b', 4096, 4096)
		want(t, d, 'c', 8192, 512)
		want(t, d, 0, 8192+512, 4096-512)
		want(t, d, 'd', 1<<30, 512)
		want(t, d, 'e', 1<<29, 64*4096)
		want(t, d, 0, 1<<29+64*4096, 4096)
		want(t, d, 'f', 1<<28, 70*4096)
	}
	d, p := m.open(t, o)
	if ops := m.taken(); len(ops) > 0 {
		t.Errorf("between the two: %v, expected nothing that waits for a device", ops)
	}
	check(d)
	p.Kill() // it has done nothing yet
	d, _ = m.open(t, o)
	check(d)
	m.taken()
	test.Must(t, d.Flush())
	ops := m.taken()
	if i, j := slices.Index(ops, "sync data"), slices.Index(ops, "write map"); i < 0 || j < i ||
		!slices.Contains(ops[j:], "sync map") {
		t.Errorf("the first flush: %v, expected the data's sync, then the map's writes, then its sync", ops)
	}
	test.Must(t, d.Close())
	if files := m.Files("/run/x"); len(files) != 0 {
		t.Errorf("left after it was closed: %q", files)
	}
	d, _ = m.open(t, o)
	check(d)
}

// Without a directory for a shared map, or with LoseUnflushed unset, writes of new blocks are
// durable when they complete, and others need not be.
func TestWritesWithoutASharedMap(t *testing.T) {
	for _, lose := range []bool{false, true} {
		m := newMachineDisk(t, 1<<20)
		d, p := m.open(t, cow.Options{LoseUnflushed: lose})
		m.taken()
		write(t, d, 'a', 4096, 8192)
		ops := m.taken()
		if durable := slices.Contains(ops, "sync data") &&
			slices.Contains(ops, "sync map"); durable == lose {
			t.Errorf("lose %v: a write of new blocks: %v", lose, ops)
		}
		write(t, d, 'b', 4096, 4096)
		if ops := m.taken(); slices.Contains(ops, "sync data") {
			t.Errorf("lose %v: an overwrite: %v, expected no sync", lose, ops)
		}
		p.Kill()
		d, _ = m.open(t, cow.Options{})
		if lose {
			want(t, d, 0, 4096, 8192)
		} else {
			want(t, d, 'b', 4096, 4096)
			want(t, d, 'a', 8192, 4096)
		}
	}
}

// Detach flushes where there is no shared map.
func TestDetachWithoutASharedMap(t *testing.T) {
	m := newMachineDisk(t, 1<<20)
	d, _ := m.open(t, cow.Options{LoseUnflushed: true})
	write(t, d, 'a', 4096, 4096)
	if detached, err := d.Detach(); !detached || err != nil {
		t.Fatal(detached, err)
	}
	d, _ = m.open(t, cow.Options{})
	want(t, d, 'a', 4096, 4096)
}

func TestDetachRefused(t *testing.T) {
	rig, x := newRig(t, cowtest.Shape{Size: 1 << 20, BlockSize: 4096})
	ch, err := rig.Disk.NewChannel()
	test.Must(t, err)
	test.ErrorIs(t, test.Err(rig.Disk.Detach()), cow.ErrInFlight, "with a channel")
	test.Must(t, ch.Close())
	write(t, rig.Disk, 'a', 0, 4096)
	write(t, rig.Disk, 'b', 0, 4096)
	bad := errors.New("bad sector")
	x.OnCall(func(c faultfs.Call) error {
		if c.Op == "sync" {
			return bad
		}
		return nil
	})
	test.ErrorIs(t, rig.Disk.Flush(), bad, "flush")
	test.ErrorIs(t, test.Err(rig.Disk.Detach()), cow.ErrFailed, "after a failed flush")
	want(t, rig.Disk, 'b', 0, 4096) // the disk is unchanged
}
