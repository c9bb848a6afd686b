package vhost

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/vhost/guest"
)

// Inflight is an "inflight description": the layout of a buffer in which the rings track requests
// in flight.
type Inflight struct {
	Size, Offset uint64 // bytes of the buffer, and its offset in its descriptor
	Queues       uint16 // regions in it, one after the other
	QueueSize    uint16 // the front-end's queue size, in descriptors; rings may be larger
}

// Append appends the payload to b, including the C structure's padding, which front-ends send.
func (d Inflight) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, d.Size)
	b = binary.LittleEndian.AppendUint64(b, d.Offset)
	b = binary.LittleEndian.AppendUint16(b, d.Queues)
	b = binary.LittleEndian.AppendUint16(b, d.QueueSize)
	return append(b, make([]byte, sizeInflight-sizeInflightPacked)...)
}

// DecodeInflight decodes an inflight description, with its padding or without.
func DecodeInflight(b []byte) (Inflight, error) {
	if len(b) != sizeInflight && len(b) != sizeInflightPacked {
		return Inflight{}, wrongSize("inflight description", len(b), sizeInflight)
	}
	return Inflight{
		Size:      binary.LittleEndian.Uint64(b),
		Offset:    binary.LittleEndian.Uint64(b[8:]),
		Queues:    binary.LittleEndian.Uint16(b[16:]),
		QueueSize: binary.LittleEndian.Uint16(b[18:]),
	}, nil
}

// inflight is the mapped buffer of the front-end. It is replaced only while no ring runs, so that a
// Backend may use a running ring's region.
type inflight struct {
	mem    []byte
	layout inflightLayout
}

// mapInflight maps the regions of l, which d describes, in fd, which stays the caller's.
func mapInflight(d Inflight, l inflightLayout, fd int) (*inflight, error) {
	size, page, err := guest.CheckFile(fd)
	if err != nil {
		return nil, fmt.Errorf("inflight buffer: %w", err)
	}
	switch {
	case page != uint64(os.Getpagesize()):
		return nil, fmt.Errorf("inflight buffer of pages of %d bytes, expected %d: %w", page,
			os.Getpagesize(), ErrProtocol)
	case d.Offset%page != 0:
		return nil, fmt.Errorf("inflight buffer at offset %d, expected a multiple of %d: %w",
			d.Offset, page, ErrProtocol)
	case d.Offset > size || uint64(l.size()) > size-d.Offset:
		return nil, fmt.Errorf("inflight buffer of %d bytes at offset %d of a file of %d: %w",
			l.size(), d.Offset, size, ErrProtocol)
	}
	mem, err := unix.Mmap(fd, int64(d.Offset), l.size(), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the inflight buffer: %w", err)
	}
	return &inflight{mem: mem, layout: l}, nil
}

func (b *inflight) unmap() {
	if b != nil {
		_ = unix.Munmap(b.mem) // fails only for ranges that are not mapped
	}
}

// makeInflight makes an empty buffer for d and returns its memfd, sealed against shrinking.
func makeInflight(d Inflight) (fd int, err error) {
	fd, err = unix.MemfdCreate("inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("making an inflight buffer: %w", err)
	}
	err = unix.Ftruncate(fd, int64(d.Size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
			unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		closeFD(fd)
		return -1, fmt.Errorf("making an inflight buffer of %d bytes: %w", d.Size, err)
	}
	return fd, nil
}

// getInflightFD returns a new, empty buffer. It is not used before SET_INFLIGHT_FD, which may come
// to another process.
func (s *session) getInflightFD(m *Message) error {
	d, err := DecodeInflight(m.Payload)
	if err != nil {
		return err
	}
	if err := d.check(len(s.rings)); err != nil {
		return err
	}
	d.Size, d.Offset = uint64(newInflightLayout(d, s.opts.MaxQueueSize).size()), 0
	fd, err := makeInflight(d)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	h := Header{Request: m.Request, Flags: FlagVersion | FlagReply}
	return s.conn.WriteMessage(h, d.Append(nil)[:len(m.Payload)], fd)
}

// setInflightFD adopts a buffer that another process may have left. Each ring checks its region
// when it starts.
func (s *session) setInflightFD(m *Message) error {
	d, err := DecodeInflight(m.Payload)
	if err != nil {
		return err
	}
	if err := d.check(len(s.rings)); err != nil {
		return err
	}
	l, err := findInflightLayout(d, s.opts.MaxQueueSize)
	if err != nil {
		return err
	}
	if s.anyRunning() {
		return fmt.Errorf("inflight buffer set while a ring runs: %w", ErrProtocol)
	}
	b, err := mapInflight(d, l, m.FDs[0])
	if err != nil {
		return err
	}
	s.inflight.unmap()
	s.inflight = b
	return nil
}

// dropInflight releases the buffer. After a reset of the device it is also emptied, for front-ends
// that set it again with rings set up anew, which its content does not describe. The kernel empties
// it, as the file may have been truncated; if it does not, rings detect stale content unless they
// are in use already.
func (s *session) dropInflight(reset bool) {
	if s.inflight != nil && reset {
		_ = unix.Madvise(s.inflight.mem, unix.MADV_REMOVE)
	}
	s.inflight.unmap()
	s.inflight = nil
}

// track gives q its region of the buffer, if there is one.
//
// A ring without a region is served nevertheless: a disk that hangs is worse than one without
// protection against the death of a back-end. A retry would not help, because the front-end would
// set the same buffer again.
func (s *session) track(q *Queue) {
	b := s.inflight
	if b == nil {
		return
	}
	at, size, num := b.layout.region(q.Index, q.Num)
	if num == 0 {
		s.logUntracked(q)
		return
	}
	q.Inflight, q.InflightNum = b.mem[at:at+size:at+size], num
}

// logUntracked logs the first ring of a session without a region in the buffer.
func (s *session) logUntracked(q *Queue) {
	if s.untracked {
		return
	}
	s.untracked = true
	s.log.Warn("ring has no region in the inflight buffer and runs without tracking: "+
		"if this process dies, requests in flight may be lost until the guest retries them or is reset",
		"ring", q.Index, "descriptors", q.Num, "buffer_rings", s.inflight.layout.rings,
		"buffer_descriptors", s.inflight.layout.largest())
}
