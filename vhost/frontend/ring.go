package frontend

import (
	"encoding/binary"

	"cowblk/vhost/virtq"
)

// Ring is a split ring as its driver sees it (virtio 1.2, 2.7). Its methods write any values,
// correct or not; Driver follows the rules.
type Ring struct {
	Num               uint16
	GuestAddr         uint64 // of the descriptor table
	desc, avail, used []byte
	// The words that both sides access at the same time. The driver writes all of availIdx and
	// usedEvent, the device all of the others.
	availIdx, usedEvent, usedIdx, availEvent *uint32
	availFlags                               uint16
	// What SetDesc has written. An element that is correct already is not written again, so that
	// the device's copy of its cache line stays valid.
	shadow []virtq.Desc
}

func newRing(m *Memory, num uint16) (*Ring, error) {
	r := &Ring{Num: num, shadow: make([]virtq.Desc, num)}
	descSize := uint64(virtq.DescTableSize(num))
	availSize := uint64(virtq.AvailSize(num)+7) &^ 7
	// The used ring gets its own page, as Linux lays it out, so that no cache line is written by
	// both sides.
	usedAt := (descSize + availSize + 4095) &^ 4095
	size := usedAt + uint64(virtq.UsedSize(num)+7)&^7
	gpa, err := m.Alloc(size, 4096)
	if err != nil {
		return nil, err
	}
	r.GuestAddr = gpa
	all := m.Bytes(gpa, size)
	r.desc, r.avail, r.used = all[:descSize], all[descSize:descSize+availSize], all[usedAt:]
	r.availIdx, r.usedIdx = word(r.avail, 0), word(r.used, 0)
	r.usedEvent = word(r.avail, virtq.UsedEventOffset(num)&^3)
	r.availEvent = word(r.used, virtq.AvailEventOffset(num))
	return r, nil
}

// addrs returns the guest addresses of descriptor table, available and used ring.
func (r *Ring) addrs() (desc, avail, used uint64) {
	descSize := uint64(len(r.desc))
	return r.GuestAddr, r.GuestAddr + descSize, r.GuestAddr + (descSize+uint64(len(r.avail))+
		4095)&^4095
}

// Clear zeroes the ring, as a driver does before it announces the ring.
func (r *Ring) Clear() {
	clear(r.desc)
	clear(r.avail)
	clear(r.used)
	clear(r.shadow)
	r.availFlags = 0
}

// SetDesc writes descriptor i, modulo the ring's size.
func (r *Ring) SetDesc(i uint16, d virtq.Desc) {
	i &= r.Num - 1
	if r.shadow[i] == d {
		return
	}
	r.shadow[i] = d
	d.Put(r.desc[int(i)*virtq.DescSize:])
}

// SetAvail writes a head into the available ring's element i, modulo its size.
func (r *Ring) SetAvail(i, head uint16) {
	binary.LittleEndian.PutUint16(r.avail[virtq.RingEntries+2*int(i&(r.Num-1)):], head)
}

// SetAvailIdx makes the elements before i visible to the device.
func (r *Ring) SetAvailIdx(i uint16) { store(r.availIdx, uint32(i)<<16|uint32(r.availFlags)) }

// AvailIdx returns the index last written.
func (r *Ring) AvailIdx() uint16 { return uint16(load(r.availIdx) >> 16) }

// setAvailFlags writes the flags beside the index, which the driver also writes.
func (r *Ring) setAvailFlags(f uint16) {
	r.availFlags = f
	r.SetAvailIdx(r.AvailIdx())
}

// setUsedEvent requests an interrupt when the device writes used element i. In a ring of one
// descriptor the word also contains the last available element.
func (r *Ring) setUsedEvent(i uint16) {
	if r.Num == 1 {
		store(r.usedEvent, load(r.usedEvent)&0xffff|uint32(i)<<16)
		return
	}
	store(r.usedEvent, uint32(i))
}

// UsedIdx returns how many elements the device has written, modulo 2^16.
func (r *Ring) UsedIdx() uint16 { return uint16(load(r.usedIdx) >> 16) }

// UsedFlags returns the used ring's flags (virtq.UsedNoNotify).
func (r *Ring) UsedFlags() uint16 { return uint16(load(r.usedIdx)) }

// AvailEvent returns the available index at which the device wants a kick.
func (r *Ring) AvailEvent() uint16 { return uint16(load(r.availEvent)) }

// Used returns the used ring's element i, modulo its size.
func (r *Ring) Used(i uint16) (head, written uint32) {
	e := r.used[virtq.RingEntries+virtq.UsedElemSize*int(i&(r.Num-1)):]
	return binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
}
