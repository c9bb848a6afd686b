package frontend

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/vhost/virtq"
)

// Op is a request's type (virtio 1.2, 5.2.6, VIRTIO_BLK_T_*).
type Op uint32

// The requests that a driver can make.
const (
	OpRead        Op = 0
	OpWrite       Op = 1
	OpFlush       Op = 4
	OpGetID       Op = 8
	OpDiscard     Op = 11
	OpWriteZeroes Op = 13
)

// Status bytes (virtio 1.2, 5.2.6).
const (
	StatusOK    byte = 0
	StatusIOErr byte = 1
	StatusUnsup byte = 2
	// StatusNone is what a status byte holds until the device writes it.
	StatusNone byte = 0xff
)

var (
	// ErrBusy reports that the ring, or the slot, has no room for a request.
	ErrBusy = errors.New("ring or slot is busy")
	// ErrDevice reports that the device returned something it never got. The driver cannot be used
	// afterwards.
	ErrDevice = errors.New("the device broke the ring")
)

// flight describes the chain whose head is this descriptor.
type flight struct {
	id    int32 // slot, or ChainBase + head; -1: not in flight
	count uint16
}

// Completion is one completed request.
type Completion struct {
	ID      int    // slot, or what SubmitChain returned
	Status  byte   // of a slot; StatusNone for chains, whose layout only the caller knows
	Written uint32 // used.len, bytes
}

// Driver is the virtio-blk driver of one ring.
type Driver struct {
	f     *Frontend
	index int
	ring  *Ring
	slots []slot

	kick, call, err int    // eventfds; kick is -1 with Options.NoKick
	base            uint16 // first index of the back-end
	eventIdx        bool
	indirect        bool

	// next avail element; avail index the device sees; next used element
	next, published, last uint16
	free                  []uint16 // descriptors, the last is taken first
	place                 []uint16 // by free descriptor: its index in free
	flights               []flight
	chained               []uint16 // next descriptor of a chain in flight
	inFlight              int
	stashed               []Completion // polled by a synchronous method, for Poll
	scratch               []Completion
	broken                error
	pollFDs               [3]unix.PollFd
}

func newDriver(f *Frontend, index int, r *Ring) (*Driver, error) {
	d := &Driver{f: f, index: index, ring: r, kick: -1, call: -1, err: -1}
	for _, p := range []*int{&d.kick, &d.call, &d.err} {
		fd, err := eventfd.New()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ring %d: %w", index, err), d.close())
		}
		*p = fd
	}
	d.eventIdx = f.features&FeatureEventIdx != 0
	d.indirect = f.features&FeatureIndirect != 0
	num := int(r.Num)
	d.flights = make([]flight, num)
	d.chained = make([]uint16, num)
	n := num
	if !d.indirect {
		n = num / 3
	}
	if err := d.makeSlots(n); err != nil {
		return nil, errors.Join(fmt.Errorf("ring %d: %w", index, err), d.close())
	}
	d.free, d.place = make([]uint16, 0, num), make([]uint16, num)
	d.stashed = make([]Completion, 0, num)
	d.scratch = make([]Completion, 0, num)
	d.reset()
	return d, nil
}

// reset empties the ring and forgets every request, like a driver that is reloaded.
func (d *Driver) reset() {
	d.ring.Clear()
	d.next, d.published, d.last, d.base, d.inFlight, d.broken = 0, 0, 0, 0, 0, nil
	d.stashed, d.free = d.stashed[:0], d.free[:0]
	for i := range d.flights {
		d.flights[i].id = -1
		d.release(uint16(len(d.flights) - 1 - i))
	}
	for i := range d.slots {
		d.slots[i].busy, d.slots[i].tableState = false, 0
	}
	d.suppressCalls()
}

func (d *Driver) close() error {
	var errs []error
	for _, p := range []*int{&d.kick, &d.call, &d.err} {
		if *p >= 0 {
			errs = append(errs, unix.Close(*p))
			*p = -1
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) kickFD() int {
	if d.f.opts.NoKick {
		return -1
	}
	return d.kick
}

func (d *Driver) callFD() int { return d.call }

// Ring gives access to the ring itself, for tests.
func (d *Driver) Ring() *Ring { return d.ring }

// InFlight returns the number of requests that the device has not completed.
func (d *Driver) InFlight() int { return d.inFlight }

// Submit puts a request for n bytes of the slot's buffer, at off bytes on the disk (both multiples
// of 512; discard and write-zeroes use the ranges that PutRanges left in the buffer, n is their
// length), into the ring. The device sees it after Kick. Errors: ErrBusy if the slot is in flight
// or the ring is full.
//
// Cache lines of the device are not changed unnecessarily: a slot that repeats length and direction
// only writes the header and the status.
func (d *Driver) Submit(slot int, op Op, off int64, n int) error {
	s := &d.slots[slot]
	need := 3
	if n == 0 {
		need = 2
	}
	if d.indirect {
		need = 1
	}
	if s.busy || len(d.free) < need {
		return ErrBusy
	}
	if n > len(s.buf) {
		return fmt.Errorf("%d bytes, expected at most %d: %w", n, len(s.buf), ErrNoMemory)
	}
	PutHeader(s.meta[:headerSize], op, uint64(off)/sectorSize)
	s.meta[slotStatus] = StatusNone
	s.busy = true
	if !d.indirect {
		var chain [3]virtq.Desc
		d.add(s.chain(&chain, op, n), int32(slot))
		return nil
	}
	table := 1 + uint64(n)<<1
	if op == OpRead || op == OpGetID {
		table |= 1 << 63
	}
	if s.tableState != table {
		var chain [3]virtq.Desc
		writeTable(s.meta[slotTable:], s.chain(&chain, op, n))
		s.tableState = table
	}
	size := uint32(3 * virtq.DescSize)
	if n == 0 {
		size = 2 * virtq.DescSize
	}
	d.addOne(uint16(slot), virtq.Desc{Addr: s.metaGPA + slotTable, Len: size,
		Flags: virtq.DescIndirect}, int32(slot))
	return nil
}

// chain lays out a request: header, n bytes of data if any, status.
func (s *slot) chain(chain *[3]virtq.Desc, op Op, n int) []virtq.Desc {
	parts := append(chain[:0], virtq.Desc{Addr: s.metaGPA, Len: headerSize})
	if n > 0 {
		data := virtq.Desc{Addr: s.bufGPA, Len: uint32(n)}
		if op == OpRead || op == OpGetID {
			data.Flags = virtq.DescWrite
		}
		parts = append(parts, data)
	}
	return append(parts, virtq.Desc{Addr: s.metaGPA + slotStatus, Len: 1, Flags: virtq.DescWrite})
}

// writeTable links ds as an indirect table at the start of b.
func writeTable(b []byte, ds []virtq.Desc) {
	for i, x := range ds {
		if i+1 < len(ds) {
			x.Flags |= virtq.DescNext
			x.Next = uint16(i + 1)
		}
		x.Put(b[i*virtq.DescSize:])
	}
}

// add links ds in the descriptor table, which has room, and fills the next element of the available
// ring. id -1: a chain, identified by its head.
func (d *Driver) add(ds []virtq.Desc, id int32) (head uint16) {
	at := len(d.free) - len(ds)
	taken := d.free[at:]
	d.free = d.free[:at]
	head = taken[0]
	for i, x := range ds {
		if i+1 < len(ds) {
			x.Flags |= virtq.DescNext
			x.Next = taken[i+1]
			d.chained[taken[i]] = taken[i+1]
		}
		d.ring.SetDesc(taken[i], x)
	}
	if id < 0 {
		id = ChainBase + int32(head)
	}
	d.expose(head, flight{id: id, count: uint16(len(ds))})
	return head
}

// addOne is add for one descriptor: at index preferred, which it probably has already, if that is
// free.
func (d *Driver) addOne(preferred uint16, x virtq.Desc, id int32) {
	last := len(d.free) - 1
	if at := int(d.place[preferred]); at < last && d.free[at] == preferred {
		moved := d.free[last]
		d.free[at], d.place[moved] = moved, uint16(at)
	} else if d.free[last] != preferred {
		preferred = d.free[last]
	}
	d.free = d.free[:last]
	d.ring.SetDesc(preferred, x)
	d.expose(preferred, flight{id: id, count: 1})
}

// release makes a descriptor free.
func (d *Driver) release(i uint16) {
	d.place[i] = uint16(len(d.free))
	d.free = append(d.free, i)
}

func (d *Driver) expose(head uint16, fl flight) {
	d.flights[head] = fl
	d.ring.SetAvail(d.next, head)
	d.next++
	d.inFlight++
}

// Kick makes the submitted requests visible to the device and notifies it if it asked for that
// (virtio 1.2, 2.7.13.4.1).
func (d *Driver) Kick() error {
	old := d.published
	if d.next == old {
		return nil
	}
	d.published = d.next
	d.ring.SetAvailIdx(d.next)
	// The store is sequentially consistent, so these loads see the request that the device made
	// before it last read the index.
	if d.eventIdx {
		if d.next-d.ring.AvailEvent()-1 >= d.next-old {
			return nil
		}
	} else if d.ring.UsedFlags()&virtq.UsedNoNotify != 0 {
		return nil
	}
	return d.kickAlways()
}

func (d *Driver) kickAlways() error {
	if d.f.opts.NoKick {
		return nil
	}
	return eventfd.Signal(d.kick)
}

// Poll appends the new completions to dst, without waiting.
func (d *Driver) Poll(dst []Completion) []Completion {
	if len(d.stashed) > 0 {
		dst = append(dst, d.stashed...)
		d.stashed = d.stashed[:0]
	}
	return d.take(dst)
}

func (d *Driver) take(dst []Completion) []Completion {
	if d.broken != nil {
		return dst
	}
	for used := d.ring.UsedIdx(); d.last != used; d.last++ {
		head, written := d.ring.Used(d.last)
		if head >= uint32(len(d.flights)) || d.flights[head].id < 0 {
			d.broken = fmt.Errorf(
				"ring %d: used element %d names head %d, which is not in flight: %w", d.index,
				d.last, head, ErrDevice)
			return dst
		}
		fl := &d.flights[head]
		c := Completion{ID: int(fl.id), Status: StatusNone, Written: written}
		if c.ID < ChainBase {
			s := &d.slots[c.ID]
			c.Status = s.meta[slotStatus]
			s.busy = false
		}
		for i, n := uint16(head), fl.count; n > 0; n-- {
			d.release(i)
			i = d.chained[i]
		}
		fl.id = -1
		d.inFlight--
		dst = append(dst, c)
	}
	return dst
}

// Err returns ErrDevice if the device broke the ring, or nil.
func (d *Driver) Err() error { return d.broken }
