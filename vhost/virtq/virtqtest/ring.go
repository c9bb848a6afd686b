package virtqtest

import (
	"encoding/binary"
	"fmt"

	"cowblk/vhost/virtq"
	"cowblk/vhost/virtq/internal/word"
)

// Ring is a split ring in guest memory, written field by field without checks.
type Ring struct {
	Num               uint16
	Desc, Avail, Used uint64 // guest addresses of the three parts

	mem               *Memory
	desc, avail, used []byte
}

// RingSize returns the number of bytes that NewRing needs for num descriptors.
func RingSize(num uint16) uint64 {
	return align16(virtq.DescTableSize(num)) + align16(virtq.AvailSize(num)) +
		align16(virtq.UsedSize(num))
}

func align16(n int) uint64 { return (uint64(n) + 15) &^ 15 }

// NewRing lays out a ring of num descriptors at guest address gpa, a multiple of 16: descriptors,
// available ring, used ring, each at a multiple of 16. Memory with other content should be cleared
// first (Clear).
func NewRing(mem *Memory, num uint16, gpa uint64) (*Ring, error) {
	avail := gpa + align16(virtq.DescTableSize(num))
	return NewRingAt(mem, num, gpa, avail, avail+align16(virtq.AvailSize(num)))
}

// NewRingAt is NewRing with an address for each part.
func NewRingAt(mem *Memory, num uint16, desc, avail, used uint64) (*Ring, error) {
	r := &Ring{Num: num, Desc: desc, Avail: avail, Used: used, mem: mem}
	r.desc = mem.Bytes(desc, uint64(virtq.DescTableSize(num)))
	r.avail = mem.Bytes(avail, uint64(virtq.AvailSize(num)))
	r.used = mem.Bytes(used, uint64(virtq.UsedSize(num)))
	if r.desc == nil || r.avail == nil || r.used == nil {
		return nil, fmt.Errorf("ring of %d at %#x, %#x, %#x: not in guest memory", num, desc, avail,
			used)
	}
	return r, nil
}

// Clear zeroes the ring, as a driver does before it announces the ring.
func (r *Ring) Clear() {
	clear(r.desc)
	clear(r.avail)
	clear(r.used)
}

// SetDesc writes descriptor i.
func (r *Ring) SetDesc(i uint16, d virtq.Desc) { d.Put(r.desc[virtq.DescSize*int(i):]) }

// WriteTable writes an indirect table at guest address gpa, which must be in memory.
func (r *Ring) WriteTable(gpa uint64, ds []virtq.Desc) {
	b := r.mem.Bytes(gpa, uint64(virtq.DescSize*len(ds)))
	for i, d := range ds {
		d.Put(b[virtq.DescSize*i:])
	}
}

// SetAvail writes entry i (modulo Num) of the available ring.
func (r *Ring) SetAvail(i, head uint16) {
	word.Store16(r.avail, virtq.RingEntries+2*int(i&(r.Num-1)), head)
}

// AvailIdx reads and SetAvailIdx writes the available ring's index. The write is a release: earlier
// writes are visible to a reader of the index.
func (r *Ring) AvailIdx() uint16     { return word.Load16(r.avail, virtq.RingIdx) }
func (r *Ring) SetAvailIdx(i uint16) { word.Store16(r.avail, virtq.RingIdx, i) }

// SetAvailFlags writes the available ring's flags (virtq.AvailNoInterrupt).
func (r *Ring) SetAvailFlags(f uint16) { word.Store16(r.avail, virtq.RingFlags, f) }

// SetUsedEvent requests a call when the used index passes i (EVENT_IDX).
func (r *Ring) SetUsedEvent(i uint16) { word.Store16(r.avail, virtq.UsedEventOffset(r.Num), i) }

// Offer makes the chain that starts at head available.
func (r *Ring) Offer(head uint16) {
	i := r.AvailIdx()
	r.SetAvail(i, head)
	r.SetAvailIdx(i + 1)
}

// UsedIdx and UsedFlags read the device's index and flags.
func (r *Ring) UsedIdx() uint16   { return word.Load16(r.used, virtq.RingIdx) }
func (r *Ring) UsedFlags() uint16 { return word.Load16(r.used, virtq.RingFlags) }

// SetUsedIdx writes the device's index, as left by another device process.
func (r *Ring) SetUsedIdx(i uint16) { word.Store16(r.used, virtq.RingIdx, i) }

// AvailEvent reads the index at which the device wants the next kick.
func (r *Ring) AvailEvent() uint16 { return word.Load16(r.used, virtq.AvailEventOffset(r.Num)) }

// UsedElem reads element i (modulo Num) of the used ring.
func (r *Ring) UsedElem(i uint16) (head, written uint32) {
	off := virtq.RingEntries + virtq.UsedElemSize*int(i&(r.Num-1))
	return binary.LittleEndian.Uint32(r.used[off:]), binary.LittleEndian.Uint32(r.used[off+4:])
}
