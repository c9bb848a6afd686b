package vhost

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// Inflight is an "inflight description": a buffer in which the rings keep what
// is in flight, and how it is laid out.
type Inflight struct {
	Size, Offset uint64 // bytes of the buffer, and where it starts in its descriptor
	Queues       uint16 // regions in it, one after the other
	QueueSize    uint16 // largest ring that a region is for, in descriptors
}

// Append appends the payload to b, with the padding that C gives the structure
// and that front-ends count.
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

// check says whether d is for at most queues rings of at most size descriptors,
// which also bounds what it needs.
func (d Inflight) check(queues int, size uint16) error {
	if d.Queues == 0 || int(d.Queues) > queues {
		return fmt.Errorf("inflight buffer for %d rings, expected 1 to %d: %w", d.Queues, queues, ErrProtocol)
	}
	if d.QueueSize == 0 || d.QueueSize > size {
		return fmt.Errorf("inflight buffer for rings of %d descriptors, expected 1 to %d: %w", d.QueueSize, size, ErrProtocol)
	}
	return nil
}

// needs returns the bytes of a buffer for split rings. Packed rings, when they
// are offered, have larger states.
func (d Inflight) needs() uint64 {
	return uint64(d.Queues) * uint64(virtq.InflightSize(d.QueueSize))
}

// inflight is the buffer that the front-end has set, mapped. It changes and goes
// only while no ring runs, so that a Backend may use a running ring's region.
type inflight struct {
	mem    []byte
	desc   Inflight
	stride int // bytes of one region
}

// mapInflight maps the buffer d in fd, which stays the caller's.
func mapInflight(d Inflight, fd int) (*inflight, error) {
	size, page, err := guest.CheckFile(fd)
	if err != nil {
		return nil, fmt.Errorf("inflight buffer: %w", err)
	}
	switch {
	case page != uint64(os.Getpagesize()):
		return nil, fmt.Errorf("inflight buffer of pages of %d bytes, expected %d: %w", page, os.Getpagesize(), ErrProtocol)
	case d.Size < d.needs():
		return nil, fmt.Errorf("inflight buffer of %d bytes, expected %d for %d rings of %d descriptors: %w",
			d.Size, d.needs(), d.Queues, d.QueueSize, ErrProtocol)
	case d.Offset%page != 0:
		return nil, fmt.Errorf("inflight buffer at offset %d, expected a multiple of %d: %w", d.Offset, page, ErrProtocol)
	case d.Offset > size || d.needs() > size-d.Offset:
		return nil, fmt.Errorf("inflight buffer of %d bytes at offset %d of a file of %d: %w", d.needs(), d.Offset, size, ErrProtocol)
	}
	mem, err := unix.Mmap(fd, int64(d.Offset), int(d.needs()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the inflight buffer: %w", err)
	}
	return &inflight{mem: mem, desc: d, stride: virtq.InflightSize(d.QueueSize)}, nil
}

// region is ring i's part.
func (b *inflight) region(i int) []byte {
	at := i * b.stride
	return b.mem[at : at+b.stride : at+b.stride]
}

func (b *inflight) unmap() {
	if b != nil {
		_ = unix.Munmap(b.mem) // fails only for what was never mapped
	}
}

// makeInflight makes an empty buffer for d and returns its memfd. Nobody can
// shrink it under our feet.
func makeInflight(d Inflight) (fd int, err error) {
	fd, err = unix.MemfdCreate("inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("making an inflight buffer: %w", err)
	}
	err = unix.Ftruncate(fd, int64(d.Size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		closeFD(fd)
		return -1, fmt.Errorf("making an inflight buffer of %d bytes: %w", d.Size, err)
	}
	return fd, nil
}

// getInflightFD gives the front-end a new, empty buffer. It is not used before
// the front-end sets it, and that may be after we have died.
func (s *session) getInflightFD(m *Message) error {
	d, err := DecodeInflight(m.Payload)
	if err != nil {
		return err
	}
	if err := d.check(len(s.rings), s.opts.MaxQueueSize); err != nil {
		return err
	}
	d.Size, d.Offset = d.needs(), 0
	fd, err := makeInflight(d)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	h := Header{Request: m.Request, Flags: FlagVersion | FlagReply}
	return s.conn.WriteMessage(h, d.Append(nil)[:len(m.Payload)], fd)
}

// setInflightFD takes over what is in flight in a buffer, which another process
// may have left behind. Whether its content makes sense is for each ring to say
// when it starts.
func (s *session) setInflightFD(m *Message) error {
	d, err := DecodeInflight(m.Payload)
	if err != nil {
		return err
	}
	if err := d.check(len(s.rings), s.opts.MaxQueueSize); err != nil {
		return err
	}
	if s.anyRunning() {
		return fmt.Errorf("inflight buffer set while a ring runs: %w", ErrProtocol)
	}
	b, err := mapInflight(d, m.FDs[0])
	if err != nil {
		return err
	}
	s.inflight.unmap()
	s.inflight = b
	return nil
}

// dropInflight forgets the buffer. After a reset of the device it is emptied,
// too, for front-ends that set it again with rings set up anew, about which it
// says nothing. The kernel does that, as the file may be shorter by now; where
// it does not, rings find out by themselves unless they are in use already.
func (s *session) dropInflight(reset bool) {
	if s.inflight != nil && reset {
		_ = unix.Madvise(s.inflight.mem, unix.MADV_REMOVE)
	}
	s.inflight.unmap()
	s.inflight = nil
}

// track gives q its region of the buffer, if there is one.
func (s *session) track(q *Queue) error {
	b := s.inflight
	if b == nil {
		return nil
	}
	if q.Index >= int(b.desc.Queues) || q.Num > b.desc.QueueSize {
		return fmt.Errorf("ring %d of %d descriptors: the inflight buffer is for %d rings of at most %d: %w",
			q.Index, q.Num, b.desc.Queues, b.desc.QueueSize, ErrProtocol)
	}
	q.Inflight, q.InflightNum = b.region(q.Index), b.desc.QueueSize
	return nil
}
