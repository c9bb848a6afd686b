package backend

import (
	"bytes"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost"
	"cowblk/vhost/frontend"
)

// otherBuffer replaces the front-end's in-flight buffer, while its rings stand, by one that it can
// change as it likes.
func otherBuffer(t *testing.T, f *frontend.Frontend, queues int) (fd int) {
	t.Helper()
	fd, err := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC)
	test.Must(t, err)
	test.Must(t, unix.Ftruncate(fd, 1<<20))
	test.Must(t, f.SetInflight(fd, vhost.Inflight{Size: 1 << 20, Queues: uint16(queues),
		QueueSize: 128}))
	return fd
}

// A front-end that cuts its in-flight buffer short breaks its own rings, and nothing else: the
// process lives, other front-ends are served, and so is this one after a reset.
func TestInflightBufferShrunk(t *testing.T) {
	s, other := serve(t, DeviceOptions{}), serve(t, DeviceOptions{})
	healthy := other.dial(frontend.Options{})
	defer healthy.Close()
	f := s.dial(frontend.Options{Queues: 2})
	defer f.Close()
	test.Must(t, f.Stop())
	fd := otherBuffer(t, f, 2)
	test.Must(t, f.Cont())
	for q := range 2 {
		_, err := f.Driver(q).WriteAt(make([]byte, 4096), 0)
		test.Must(t, err)
	}
	test.Must(t, unix.Ftruncate(fd, 0))
	for q := range 2 {
		test.ErrorIs(t, test.Err(f.Driver(q).WriteAt(make([]byte, 4096), 0)),
			frontend.ErrQueueBroken, q)
	}
	_, err := healthy.Driver(0).ReadAt(make([]byte, 4096), 0)
	test.Must(t, err)
	test.Must(t, f.Reset())
	for q := range 2 {
		_, err := f.Driver(q).WriteAt(make([]byte, 4096), 0)
		test.Must(t, err)
	}
}

// A buffer that is short already when a ring starts, or damaged, is no harm either.
func TestInflightBufferDamaged(t *testing.T) {
	s := serve(t, DeviceOptions{})
	f := s.dial(frontend.Options{})
	defer f.Close()
	test.Must(t, f.Stop())
	fd := otherBuffer(t, f, 1)
	_, err := unix.Pwrite(fd, bytes.Repeat([]byte{0xff}, 4096), 0)
	test.Must(t, err)
	test.Must(t, f.Cont())
	test.ErrorIs(t, f.Driver(0).Flush(), frontend.ErrQueueBroken)
	test.Must(t, f.Reset())
	test.Must(t, f.Driver(0).Flush())
}

// A ring that the in-flight buffer has no region for is served: after a stop, after the connection
// was lost, and after the device was reset, which brings a buffer that has one.
func TestRingBeyondItsInflightBuffer(t *testing.T) {
	for _, num := range []uint16{256, 1024} {
		s := serve(t, DeviceOptions{})
		f := s.dial(frontend.Options{Queues: 2, QueueSize: num, InflightQueueSize: 128})
		moves := func(when string, round byte) {
			t.Helper()
			for q := range 2 {
				want := bytes.Repeat([]byte{round<<1 | byte(q)}, 4096)
				got := make([]byte, len(want))
				if _, err := f.Driver(q).WriteAt(want, int64(q)*4096); err != nil {
					t.Fatalf("ring %d of %d descriptors, %s: %v", q, num, when, err)
				}
				if _, err := f.Driver(q).ReadAt(got, int64(q)*4096); err != nil ||
					!bytes.Equal(got, want) {
					t.Fatalf("ring %d of %d descriptors, %s: other data than written, %v", q, num,
						when, err)
				}
			}
		}
		moves("tracked", 1)
		test.Must(t, f.Stop())
		otherBuffer(t, f, 2) // for rings of 128
		test.Must(t, f.Cont())
		moves("in a buffer for 128", 2)
		test.Must(t, f.Stop())
		test.Must(t, f.Cont())
		moves("after stop and cont", 3)
		test.Must(t, f.Disconnect())
		test.Must(t, f.Reconnect(s.socket))
		moves("reconnected", 4)
		test.Must(t, f.Reset())
		moves("after a reset", 5)
		test.Must(t, f.Close())
	}
}

// What is resubmitted after a promotion lands in the head of then: the layer that was the head
// stays as it was sealed.
func TestResubmittedToTheCurrentHead(t *testing.T) {
	const n = 8
	s := serveFull(t)
	s.dev.SetParking(true)
	f := s.dial(frontend.Options{})
	defer f.Close()
	s.fill(unix.ENOSPC)
	s.fillUp(f.Driver(0), n)
	test.Must(t, f.Stop()) // the requests are in the region only
	former := s.disk.Layers()[0]
	paths := layer.Paths{Map: filepath.Join(s.dir, "map2"), Data: filepath.Join(s.dir, "data2")}
	next, err := layer.CreateHead(vfs.OS{}, paths, layer.CreateParams{Parent: former.UUID,
		Size: former.Size, BlockSize: former.BlockSize, Base: former.Base,
		BaseSize: former.BaseSize})
	test.Must(t, err)
	p, err := s.disk.Promote(next)
	test.Must(t, err)
	<-p.Done()
	test.Must(t, p.Err())
	s.free()
	test.Must(t, f.Cont())
	collect(t, f.Driver(0), n, frontend.StatusOK)
	written(t, f.Driver(0), n)
	h, err := layer.ReadHeader(vfs.OS{}, filepath.Join(s.dir, "map"))
	test.Must(t, err)
	if h.State != layer.Sealed || h.Owned != 0 {
		t.Errorf("the former head is %v and owns %d blocks, expected none", h.State, h.Owned)
	}
	if got := s.disk.Stats().HeadBlocks; got != n {
		t.Errorf("the new head owns %d blocks, expected %d", got, n)
	}
}
