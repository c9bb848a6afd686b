package vhost_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
	"cowblk/vhost/virtq"
)

// queue records the Queue that the fake got for a ring.
func (b *fake) queue(i int) vhost.Queue {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.running[i]
}

func (b *fake) region(i int) []byte { return b.queue(i).Inflight }

// The next session finds the buffer of the former one, with each ring's region in its place. After
// a reset the front-end gets a new buffer.
func TestInflightAcrossSessions(t *testing.T) {
	s := serve(t, newFake(4))
	f := connect(t, s, frontend.Options{Queues: 4, QueueSize: 64})
	must(t, "barrier", f.Barrier())
	for i := range 4 {
		r := s.be.region(i)
		if len(r) != virtq.InflightSize(64) || strings.Trim(string(r), "\x00") != "" {
			t.Fatalf("ring %d has a region of %d bytes, or not an empty one", i, len(r))
		}
		r[len(r)-1] = byte(i + 1)
	}
	fd, desc := f.Inflight()
	if desc != (vhost.Inflight{
		Size: uint64(4 * (virtq.InflightSize(64) + virtq.InflightSize(1024))), Queues: 4,
		QueueSize: 64}) {
		t.Errorf("the buffer is %+v", desc)
	}
	if err := unix.Ftruncate(fd, 0); err == nil {
		t.Error("the buffer can be shrunk")
	}
	must(t, "disconnect", f.Disconnect())
	if err := <-s.end; err != nil { // the buffer is still open
		t.Error(err)
	}
	must(t, "fake", s.be.done())

	for round := range 2 {
		next := serve(t, newFake(8))
		test.Must(t, f.ReconnectOn(next.conn))
		must(t, "barrier", f.Barrier())
		for i := range 4 {
			if r := next.be.region(i); len(r) == 0 || r[len(r)-1] != byte(i+1) {
				t.Errorf("ring %d: another region than before", i)
			}
		}
		must(t, "stop", f.Stop())
		must(t, "cont", f.Cont())
		must(t, "barrier", f.Barrier())
		if r := next.be.region(1); r[len(r)-1] != 2 {
			t.Error("ring 1 has lost its region by stop and cont")
		}
		if round == 1 {
			must(t, "reset", f.Reset())
			must(t, "barrier", f.Barrier())
			if r := next.be.region(1); r[len(r)-1] != 0 {
				t.Error("ring 1 has its old region after a reset")
			}
		}
		must(t, "disconnect", f.Disconnect())
		test.Check(t, <-next.end)
		must(t, "fake", next.be.done())
	}
	must(t, "abort", f.Abort())
	test.Equal(t, mappings(t), s.maps, "mappings are left")
	test.Equal(t, test.CountFDs(t), s.fds, "descriptors are left")
}

// A front-end that keeps the buffer over RESET_DEVICE finds it empty.
func TestInflightEmptiedByReset(t *testing.T) {
	s := serve(t, newFake(1))
	f := connect(t, s, frontend.Options{})
	must(t, "barrier", f.Barrier())
	s.be.region(0)[100] = 1
	fd, desc := f.Inflight()
	must(t, "reset", f.Send(vhost.ResetDevice, vhost.FlagVersion, nil))
	must(t, "barrier", f.Barrier())
	b, err := unix.Mmap(fd, 0, int(desc.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	test.Must(t, err)
	if b[100] != 0 {
		t.Error("a device that was reset has something in flight")
	}
	must(t, "unmap", unix.Munmap(b))
	must(t, "abort", f.Abort())
	must(t, "Serve", s.wait())
}

func TestInflightRefused(t *testing.T) {
	page := uint64(os.Getpagesize())
	good := vhost.Inflight{Size: uint64(2 * virtq.InflightSize(128)), Queues: 2, QueueSize: 128}
	with := func(change func(d *vhost.Inflight)) []byte {
		d := good
		change(&d)
		return d.Append(nil)
	}
	for _, tc := range []struct {
		name    string
		request vhost.Request
		payload []byte
		file    int64 // bytes; 0: no descriptor
		running bool
		want    string // in Serve's error; empty: it is accepted
	}{
		{name: "good", request: vhost.SetInflightFD, payload: good.Append(nil), file: 1 << 20},
		{name: "without padding", request: vhost.SetInflightFD, payload: good.Append(nil)[:20],
			file: 1 << 20},
		{name: "half of the padding", request: vhost.SetInflightFD, payload: good.Append(nil)[:22],
			file: 1 << 20, want: "22 bytes"},
		{name: "short", request: vhost.SetInflightFD, payload: good.Append(nil)[:19], file: 1 << 20,
			want: "19 bytes"},
		{name: "no descriptor", request: vhost.SetInflightFD, payload: good.Append(nil),
			want: "0 file descriptors"},
		{name: "more than is needed", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Size = 1<<64 - 1 }), file: 1 << 20},
		{name: "less than is needed", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Size = 2111 }), file: 1 << 20,
			want: "2111 bytes, expected at least 2112"},
		{name: "for one ring of two", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Size-- }), file: 4223},
		{name: "nothing", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Size = 0 }), file: 1 << 20,
			want: "of 0 bytes"},
		{name: "file too short", request: vhost.SetInflightFD, payload: good.Append(nil),
			file: 4223, want: "of a file of 4223"},
		{name: "at an offset", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Offset = 16 * page }), file: 1 << 20},
		{name: "beyond the file", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Offset = 1 << 20 }), file: 1 << 20,
			want: "at offset 1048576"},
		{name: "far beyond the file", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Offset = -page }), file: 1 << 20,
			want: "of a file of"},
		{name: "askew", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Offset = 64 }), file: 1 << 20,
			want: "multiple of"},
		{name: "no rings", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Queues = 0 }), file: 1 << 20,
			want: "0 rings"},
		{name: "too many rings", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Queues, d.Size = 5, 1<<20 }), file: 1 << 20,
			want: "5 rings"},
		{name: "rings of 0", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.QueueSize = 0 }), file: 1 << 20,
			want: "0 descriptors"},
		{name: "for larger rings than there are", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.QueueSize, d.Size = 65535, 2*16448 }),
			file:    1 << 20},
		{name: "largest", request: vhost.SetInflightFD,
			payload: with(func(d *vhost.Inflight) {
				d.Queues, d.QueueSize, d.Size = 4, 1024, 1<<20
			}), file: 1 << 20},
		{name: "under running rings", request: vhost.SetInflightFD, payload: good.Append(nil),
			file: 1 << 20, running: true, want: "while a ring runs"},
		{name: "get for too many rings", request: vhost.GetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Queues = 65535 }), want: "65535 rings"},
		{name: "get for no rings", request: vhost.GetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.Queues = 0 }), want: "0 rings"},
		{name: "get for rings of 0", request: vhost.GetInflightFD,
			payload: with(func(d *vhost.Inflight) { d.QueueSize = 0 }), want: "0 descriptors"},
		{name: "get with a descriptor", request: vhost.GetInflightFD, payload: good.Append(nil),
			file: 1 << 20, want: "1 file descriptors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, newFake(4))
			f := connect(t, s, frontend.Options{NoStart: !tc.running})
			var fds []int
			if tc.file > 0 {
				fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
				test.Must(t, err)
				defer unix.Close(fd)
				s.fds++
				must(t, "truncate", unix.Ftruncate(fd, tc.file))
				fds = []int{fd}
			}
			must(t, "send", f.Send(tc.request, vhost.FlagVersion, tc.payload, fds...))
			if tc.want == "" {
				must(t, "barrier", f.Barrier())
				must(t, "again", f.Send(tc.request, vhost.FlagVersion, tc.payload, fds...))
				must(t, "barrier", f.Barrier())
			}
			must(t, "disconnect", f.Disconnect())
			err := <-s.end
			must(t, "abort", f.Abort())
			s.end <- err
			if err := s.wait(); (err == nil) != (tc.want == "") ||
				!strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("Serve: %v; expected %q", err, tc.want)
			}
		})
	}
}
