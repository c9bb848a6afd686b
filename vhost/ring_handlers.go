package vhost

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// index checks a ring's index against the number of queues.
func (s *session) index(i uint32) (int, error) {
	if int64(i) >= int64(len(s.rings)) {
		return 0, fmt.Errorf("ring %d, expected less than %d: %w", i, len(s.rings), ErrProtocol)
	}
	return int(i), nil
}

func (s *session) vringState(m *Message) (int, uint32, error) {
	v, err := DecodeVringState(m.Payload)
	if err != nil {
		return 0, 0, err
	}
	i, err := s.index(v.Index)
	return i, v.Num, err
}

func (s *session) setVringNum(m *Message) error {
	i, num, err := s.vringState(m)
	if err != nil {
		return err
	}
	if num == 0 || num&(num-1) != 0 || num > uint32(s.opts.MaxQueueSize) {
		return fmt.Errorf("ring %d: size %d, expected a power of two from 1 to %d: %w", i, num,
			s.opts.MaxQueueSize, ErrProtocol)
	}
	r := &s.rings[i]
	if r.running {
		if uint16(num) == r.num {
			return nil
		}
		return fmt.Errorf("ring %d: size changed from %d to %d while it runs: %w", i, r.num, num,
			ErrProtocol)
	}
	return s.change(i, func(r *ring) { r.num = uint16(num) })
}

// setVringAddr checks only the alignment, because the memory table may still be missing. The
// available ring needs 4 where virtio asks for 2, because its index is accessed through the 32-bit
// word that contains it; common layouts give it 16.
func (s *session) setVringAddr(m *Message) error {
	a, err := DecodeVringAddr(m.Payload)
	if err != nil {
		return err
	}
	i, err := s.index(a.Index)
	if err != nil {
		return err
	}
	if a.Flags != 0 {
		return fmt.Errorf("ring %d: address flags %#x: the dirty log was not negotiated: %w", i,
			a.Flags, ErrProtocol)
	}
	for _, part := range [...]struct {
		name        string
		addr, align uint64
	}{{"descriptor table", a.Desc, 16}, {"available ring", a.Avail, 4}, {"used ring", a.Used, 4}} {
		if part.addr%part.align != 0 {
			return fmt.Errorf("ring %d: %s at %#x, expected a multiple of %d: %w", i, part.name,
				part.addr, part.align, ErrProtocol)
		}
	}
	if r := &s.rings[i]; r.haveAddr && r.desc == a.Desc && r.avail == a.Avail && r.used == a.Used {
		return nil
	}
	return s.change(i, func(r *ring) {
		r.desc, r.avail, r.used, r.haveAddr = a.Desc, a.Avail, a.Used, true
	})
}

func (s *session) setVringBase(m *Message) error {
	i, base, err := s.vringState(m)
	if err != nil {
		return err
	}
	if base > 0xffff {
		return fmt.Errorf("ring %d: base %d, expected at most 65535: %w", i, base, ErrProtocol)
	}
	if s.rings[i].running {
		return fmt.Errorf("ring %d: base set while it runs: %w", i, ErrProtocol)
	}
	s.rings[i].base = uint16(base)
	return nil
}

// getVringBase stops the ring, which waits for its last request, and answers with its next index. A
// ring that never started answers with the index from SET_VRING_BASE. The call and error
// descriptors stay, because QEMU does not always send them again.
func (s *session) getVringBase(m *Message) error {
	i, _, err := s.vringState(m)
	if err != nil {
		return err
	}
	if err := s.stop(i); err != nil {
		return err
	}
	r := &s.rings[i]
	r.dropKick()
	return s.reply(m, VringState{Index: uint32(i), Num: uint32(r.base)}.Append(nil))
}

// vringFD decodes a message with a ring's eventfd. The descriptor stays in the message until the
// caller takes it; -1 if there is none.
func (s *session) vringFD(m *Message) (int, error) {
	v, hasFD, err := DecodeVringFD(m.Payload)
	if err != nil {
		return 0, err
	}
	i, err := s.index(uint32(v))
	if err != nil {
		return 0, err
	}
	if hasFD != (len(m.FDs) == 1) {
		return 0, fmt.Errorf("ring %d: %d file descriptors although the message says %t: %w", i,
			len(m.FDs), hasFD, ErrProtocol)
	}
	if hasFD {
		if err := checkEventFD(m.FDs[0]); err != nil {
			return 0, fmt.Errorf("ring %d: %w", i, err)
		}
	}
	return i, nil
}

// checkEventFD refuses a descriptor that is not an eventfd, and makes it non-blocking. Any other
// file could block the thread that signals it for as long as the front-end likes: a full pipe, or a
// file system of the front-end's own (FUSE), where not even poll returns. The front-end can make an
// eventfd blocking again, so the Backend must tolerate that.
//
// The type is read from the name in /proc, which does not access the file system of the file.
func checkEventFD(fd int) error {
	const want = "anon_inode:[eventfd]"
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return fmt.Errorf("kind of a file descriptor: %w", err)
	}
	if name != want {
		return fmt.Errorf("expected an eventfd, found %.40s: %w", name, ErrProtocol)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

func (s *session) setVringKick(m *Message) error {
	i, err := s.vringFD(m)
	if err != nil {
		return err
	}
	old, fd := s.rings[i].kick, m.TakeFD()
	if err := s.change(i, func(r *ring) { r.kick, r.haveKick = fd, true }); err != nil {
		closeFD(fd)
		return err
	}
	closeFD(old)
	return nil
}

func (s *session) setVringCall(m *Message) error {
	i, err := s.vringFD(m)
	if err != nil {
		return err
	}
	r := &s.rings[i]
	return s.replace(m, &r.call, r.running, func(fd int) { s.be.SetCall(i, fd) })
}

func (s *session) setVringErr(m *Message) error {
	i, err := s.vringFD(m)
	if err != nil {
		return err
	}
	r := &s.rings[i]
	return s.replace(m, &r.err, r.running, func(fd int) { s.be.SetErr(i, fd) })
}

// replace replaces *at by the message's descriptor and passes a duplicate to a running queue.
func (s *session) replace(m *Message, at *int, running bool, set func(fd int)) error {
	fd := m.TakeFD()
	if running {
		dup, err := dupFD(fd)
		if err != nil {
			closeFD(fd)
			return err
		}
		set(dup)
	}
	closeFD(*at)
	*at = fd
	return nil
}

// setVringEnable may come before any other message about the ring (SPDK), and before memory is
// shared; then it is only recorded.
func (s *session) setVringEnable(m *Message) error {
	i, v, err := s.vringState(m)
	if err != nil {
		return err
	}
	if v > 1 {
		return fmt.Errorf("ring %d: enable %d, expected 0 or 1: %w", i, v, ErrProtocol)
	}
	if s.rings[i].enabled == (v == 1) {
		return nil
	}
	return s.change(i, func(r *ring) { r.enabled = v == 1 })
}
