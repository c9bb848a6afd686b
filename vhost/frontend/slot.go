package frontend

import "encoding/binary"

const (
	sectorSize = 512
	headerSize = 16 // struct virtio_blk_req before its data
	maxBuffer  = 1 << 20
	// Layout of a slot besides its buffer: header and indirect table in a cache line that the
	// device only reads, the status byte in another.
	slotTable  = headerSize
	slotStatus = 64
	slotMeta   = 128
)

// slot is the place of one request in guest memory.
type slot struct {
	meta            *[slotMeta]byte
	buf             []byte
	metaGPA, bufGPA uint64
	// tableState describes the indirect table: the buffer's length from bit 1 on, its direction in
	// bit 63, and bit 0 set; 0: empty.
	tableState uint64
	busy       bool
}

func (d *Driver) makeSlots(n int) error {
	if n == 0 {
		return nil
	}
	if most := d.f.opts.Slots; most > 0 {
		n = min(n, most)
	}
	size := d.f.bufferSize(n)
	meta, err := d.f.mem.Alloc(uint64(n)*slotMeta, 4096)
	if err != nil {
		return err
	}
	bufs, err := d.f.mem.Alloc(uint64(n)*size, min(4096, size))
	if err != nil {
		return err
	}
	d.slots = make([]slot, n)
	for i := range d.slots {
		s := &d.slots[i]
		s.metaGPA, s.bufGPA = meta+uint64(i)*slotMeta, bufs+uint64(i)*size
		s.meta = (*[slotMeta]byte)(d.f.mem.Bytes(s.metaGPA, slotMeta))
		s.buf = d.f.mem.Bytes(s.bufGPA, size)
	}
	return nil
}

// bufferSize divides half of the memory among all slots of all rings, in whole pages if possible,
// else in sectors.
func (f *Frontend) bufferSize(slots int) uint64 {
	n := f.opts.MaxTransfer
	if n == 0 {
		n = min(int(f.opts.Memory)/2/(f.opts.Queues*slots), maxBuffer)
	}
	if f.features&FeatureSizeMax != 0 && f.space != nil {
		if limit := binary.LittleEndian.Uint32(f.space[8:]); limit > 0 {
			n = min(n, int(min(limit, 1<<30)))
		}
	}
	if n >= 4096 {
		return uint64(n) &^ 4095
	}
	return uint64(max(n, sectorSize)) &^ (sectorSize - 1)
}

// Slots returns the maximum number of requests in flight.
func (d *Driver) Slots() int { return len(d.slots) }

// Buffer returns a slot's data in guest memory. The caller owns it while the slot is not in flight.
func (d *Driver) Buffer(slot int) []byte { return d.slots[slot].buf }
