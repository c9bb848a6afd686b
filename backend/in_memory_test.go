package backend

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cowblk/backend/backendtest"
	"cowblk/cow"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/layer"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

const (
	memoryDisk  = 1 << 20 // bytes
	memoryBlock = 4096
)

// inMemory is a disk on a machine whose power can be cut.
type inMemory struct {
	t       *testing.T
	machine *faultfs.Machine
	hook    atomic.Pointer[faultfs.Hook]
	spec    cow.Spec
	disk    *cow.Disk
	dev     *Device
	socket  string
	stop    func() // of the export
	used    int    // blocks that stable has written to
}

// serveInMemory serves a disk over a base of 'b' that flushes when it is asked to, and not
// otherwise.
func serveInMemory(t *testing.T, o DeviceOptions) *inMemory {
	t.Helper()
	s := &inMemory{t: t, machine: faultfs.New()}
	s.machine.Put("/base", bytes.Repeat([]byte{'b'}, memoryDisk))
	files := s.machine.Process(func(c faultfs.Call) (f faultfs.Fault) {
		if h := s.hook.Load(); h != nil {
			f = (*h)(c)
		}
		return f
	})
	b, err := files.OpenFile("/base", os.O_RDONLY, 0)
	test.Must(t, err)
	print, err := layer.ComputeFingerprint(b, 0, memoryDisk)
	test.Must(t, errors.Join(err, b.Close()))
	paths := layer.Paths{Map: "/map", Data: "/data"}
	l, err := layer.CreateHead(files, paths, layer.CreateParams{Size: memoryDisk,
		BlockSize: memoryBlock, Base: print, BaseSize: memoryDisk})
	test.Must(t, err)
	test.Must(t, l.Close())
	test.Must(t, files.SyncDir("/"))
	s.machine.Record()
	s.spec = cow.Spec{Base: &cow.BaseSpec{Path: "/base"}, Layers: []layer.Paths{paths}}
	s.disk, err = cow.Open(s.spec, cow.Options{FS: files, FlushInterval: -1, LoseUnflushed: true})
	test.Must(t, err)
	s.export(o)
	t.Cleanup(func() {
		s.stop()
		s.disk.Close()
	})
	return s
}

// export offers the disk on a socket, as another process would: the one before it ends.
func (s *inMemory) export(o DeviceOptions) {
	s.t.Helper()
	if s.stop != nil {
		s.stop()
	}
	o.Name, o.Log = "test", slog.New(slog.DiscardHandler)
	var err error
	s.dev, err = NewDevice(s.disk, o)
	test.Must(s.t, err)
	s.socket = filepath.Join(s.t.TempDir(), "sock")
	s.stop = backendtest.Serve(s.t, s.socket, s.dev, o.Log)
}

// afterPowerCut returns what n bytes at off are when the power fails now, and nothing is kept but
// what is certain.
func (s *inMemory) afterPowerCut(off int64, n int) []byte {
	s.t.Helper()
	m := s.machine.Cut(func(d *faultfs.Device) faultfs.Choice {
		return faultfs.Choice{Keep: make([]bool, len(d.Pending()))}
	})
	d, err := cow.Open(s.spec, cow.Options{FS: m.Process(nil), FlushInterval: -1})
	test.Must(s.t, err)
	defer d.Close()
	p := make([]byte, n)
	_, err = d.ReadAt(p, off)
	test.Must(s.t, err)
	return p
}

// stable carries out every kind of write through a ring, takes the power away as soon as each has
// completed, and reports whether it was there afterwards. It fails unless all kinds are the same.
func (s *inMemory) stable(d *frontend.Driver) bool {
	s.t.Helper()
	at := func(n int) int64 { return int64(s.used+n) * memoryBlock }
	whole := func(n int) frontend.Range { return frontend.Range{Off: at(n), Len: memoryBlock} }
	test.Must(s.t, backendtest.Write(d, 'o', at(0))())
	test.Must(s.t, s.disk.Flush()) // the head owns block 0
	kinds := []struct {
		name string
		want byte
		do   func() error
	}{
		{"overwrite", 'w', backendtest.Write(d, 'w', at(0))},
		{"first write", 'w', backendtest.Write(d, 'w', at(1))},
		{"discard", 0, func() error { return d.Discard(whole(2)) }},
		{"write-zeroes", 0, func() error { return d.WriteZeroes(whole(3)) }},
	}
	stable := 0
	var found []string
	for i, k := range kinds {
		test.Must(s.t, k.do())
		p := s.afterPowerCut(at(i), memoryBlock)
		ok := bytes.Equal(p, bytes.Repeat([]byte{k.want}, memoryBlock))
		found = append(found, fmt.Sprintf("%s %v", k.name, ok))
		if ok {
			stable++
		}
	}
	s.used += len(kinds)
	if stable != 0 && stable != len(kinds) {
		s.t.Errorf("not all kinds of writes are alike: %s", strings.Join(found, ", "))
	}
	return stable == len(kinds)
}
