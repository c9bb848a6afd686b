package virtqtest

import (
	"errors"
	"fmt"

	"cowblk/vhost/virtq"
)

// ErrFull reports that the ring has too few free descriptors for a chain.
var ErrFull = errors.New("ring is full")

// Driver is a correct driver on a Ring: it manages the free descriptors, links chains, and takes
// used elements. For one goroutine.
type Driver struct {
	*Ring
	// EventIdx says that VIRTIO_F_RING_EVENT_IDX was negotiated.
	EventIdx bool
	// Err is set when the device returned something it never got.
	Err error

	next, last uint16 // next available index to fill; next used index to take
	kicked     uint16 // available index at the last Kick
	free       []uint16
	chain      [][]uint16 // by head: descriptors to free on completion
}

// NewDriver returns a driver on a cleared ring.
func NewDriver(r *Ring) *Driver {
	d := &Driver{Ring: r, chain: make([][]uint16, r.Num)}
	for i := range r.Num {
		d.free = append(d.free, r.Num-1-i)
	}
	return d
}

// Free returns the number of free descriptors.
func (d *Driver) Free() int { return len(d.free) }

// Add links ds into a chain, adding the flags that links need to those given, and fills the next
// entry of the available ring; Expose makes it visible. It returns the chain's head, or ErrFull.
func (d *Driver) Add(ds ...virtq.Desc) (head uint16, err error) {
	if len(ds) == 0 || len(ds) > len(d.free) {
		return 0, ErrFull
	}
	at := len(d.free) - len(ds)
	taken := d.free[at:]
	head = taken[0]
	d.chain[head] = append(d.chain[head][:0], taken...)
	for i, desc := range ds {
		if i+1 < len(ds) {
			desc.Flags |= virtq.DescNext
			desc.Next = taken[i+1]
		}
		d.SetDesc(taken[i], desc)
	}
	d.free = d.free[:at]
	d.SetAvail(d.next, head)
	d.next++
	return head, nil
}

// AddIndirect writes ds, linked, as an indirect table at guest address gpa, and adds the one
// descriptor that refers to it.
func (d *Driver) AddIndirect(gpa uint64, ds ...virtq.Desc) (head uint16, err error) {
	if len(d.free) == 0 {
		return 0, ErrFull
	}
	for i := 0; i+1 < len(ds); i++ {
		ds[i].Flags |= virtq.DescNext
		ds[i].Next = uint16(i + 1)
	}
	d.WriteTable(gpa, ds)
	return d.Add(virtq.Desc{Addr: gpa, Len: uint32(virtq.DescSize * len(ds)),
		Flags: virtq.DescIndirect})
}

// Expose makes the added chains available to the device and reports whether the device wants a kick
// for them (virtio 1.2, 2.7.13 and 2.7.10).
func (d *Driver) Expose() (kick bool) {
	d.SetAvailIdx(d.next)
	// The loads below do not pass the store above, on which the device's side relies.
	old := d.kicked
	d.kicked = d.next
	if d.EventIdx {
		return d.next-d.AvailEvent()-1 < d.next-old
	}
	return d.next != old && d.UsedFlags()&virtq.UsedNoNotify == 0
}

// Take takes one used element and frees its descriptors. A used element that names no chain in
// flight sets Err, and nothing is taken after that.
func (d *Driver) Take() (head uint16, written uint32, ok bool) {
	if d.Err != nil || d.UsedIdx() == d.last {
		return 0, 0, false
	}
	id, written := d.UsedElem(d.last)
	if id >= uint32(d.Num) || len(d.chain[id]) == 0 {
		d.Err = fmt.Errorf("used element %d names head %d, which is not in flight", d.last, id)
		return 0, 0, false
	}
	d.last++
	head = uint16(id)
	c := d.chain[head]
	d.free = append(d.free, c...)
	d.chain[head] = c[:0]
	return head, written, true
}

// Taken returns the index of the next used element to take.
func (d *Driver) Taken() uint16 { return d.last }

// EnableCalls requests a call at the next used element and reports whether one is there already;
// then the driver must poll again instead of waiting.
func (d *Driver) EnableCalls() (pending bool) {
	if d.EventIdx {
		d.SetUsedEvent(d.last)
	} else {
		d.SetAvailFlags(0)
	}
	return d.UsedIdx() != d.last
}

// SuppressCalls requests no calls, as a polling driver does.
func (d *Driver) SuppressCalls() {
	if d.EventIdx {
		d.SetUsedEvent(d.last - 1)
		return
	}
	d.SetAvailFlags(virtq.AvailNoInterrupt)
}

// Reset clears the ring and starts at index base in both rings, like a driver that is reloaded
// (base 0) or a front-end that restores a ring.
func (d *Driver) Reset(base uint16) {
	ring, event := d.Ring, d.EventIdx
	ring.Clear()
	*d = *NewDriver(ring)
	d.EventIdx, d.next, d.last, d.kicked = event, base, base, base
	d.SetAvailIdx(base)
	d.SetUsedIdx(base)
}
