package aio

import "golang.org/x/sys/unix"

// operation is one operation in flight.
type operation struct {
	id      uint64
	off     int64 // bytes
	fd      int32
	count   uint32 // iovecs
	iov     uintptr
	write   bool
	retried bool // was submitted a second time
}

// slots are the operations in flight of an engine. Their number bounds everything else: no queue
// between caller, engine and kernel is shorter.
type slots struct {
	ops  []operation
	free []uint32 // indexes into ops; a stack, so that warm memory is used first
	mem  iovecs
}

func newSlots(depth int) (slots, error) {
	mem, err := newIovecs(depth)
	if err != nil {
		return slots{}, err
	}
	s := slots{ops: make([]operation, depth), free: make([]uint32, depth), mem: mem}
	for i := range s.free {
		s.free[i] = uint32(depth - 1 - i)
	}
	return s, nil
}

// take fills a free slot. False: there is none, or iov is too long.
func (s *slots) take(id uint64, write bool, fd int, iov []unix.Iovec,
	off int64) (slot uint32, ok bool) {
	last := len(s.free) - 1
	if last < 0 || len(iov) > MaxIovecs {
		return 0, false
	}
	slot = s.free[last]
	s.free = s.free[:last]
	s.ops[slot] = operation{
		id: id, off: off, fd: int32(fd), write: write,
		iov: s.mem.store(slot, iov), count: uint32(len(iov)),
	}
	return slot, true
}

// give frees a slot whose memory is not used any more.
func (s *slots) give(slot uint32) { s.free = append(s.free, slot) }

// inUse returns the number of slots taken.
func (s *slots) inUse() int { return len(s.ops) - len(s.free) }

// release frees the memory. No slot may be used afterwards.
func (s *slots) release() {
	s.free = s.free[:0]
	s.ops = s.ops[:0]
	s.mem.release()
}
