package frontend

import (
	"encoding/binary"

	"cowblk/vhost/virtq"
)

// ChainBase is the smallest ID of a chain; smaller IDs are slots.
const ChainBase = 1 << 16

// Segment is a buffer of a chain, at a guest address, for the device to read (or to write, if Write
// is set). It may cross regions.
type Segment struct {
	Addr  uint64
	Len   uint32
	Write bool
}

func (s Segment) raw() virtq.Desc {
	d := virtq.Desc{Addr: s.Addr, Len: s.Len}
	if s.Write {
		d.Flags = virtq.DescWrite
	}
	return d
}

// SubmitChain puts a chain of any layout into the ring; the device sees it after Kick. The last
// indirect segments (0: none) go into an indirect table, whether that was negotiated or not. It
// returns the ID of the completion. Errors: ErrBusy; ErrNoMemory for the table.
func (d *Driver) SubmitChain(segments []Segment, indirect int) (id int, err error) {
	indirect = min(indirect, len(segments))
	direct := segments[:len(segments)-indirect]
	chain := make([]virtq.Desc, 0, len(direct)+1)
	for _, s := range direct {
		chain = append(chain, s.raw())
	}
	if indirect > 0 {
		table, err := d.table(segments[len(direct):])
		if err != nil {
			return 0, err
		}
		chain = append(chain, table)
	}
	if len(chain) == 0 || len(d.free) < len(chain) {
		return 0, ErrBusy
	}
	return ChainBase + int(d.add(chain, -1)), nil
}

func (d *Driver) table(segments []Segment) (virtq.Desc, error) {
	size := uint64(len(segments) * virtq.DescSize)
	gpa, err := d.f.mem.Alloc(size, virtq.DescSize)
	if err != nil {
		return virtq.Desc{}, err
	}
	ds := make([]virtq.Desc, len(segments))
	for i, s := range segments {
		ds[i] = s.raw()
	}
	writeTable(d.f.mem.Bytes(gpa, size), ds)
	return virtq.Desc{Addr: gpa, Len: uint32(size), Flags: virtq.DescIndirect}, nil
}

// DoChain submits a chain, kicks and waits for it. It returns used.len.
func (d *Driver) DoChain(segments []Segment, indirect int) (written uint32, err error) {
	id, err := d.SubmitChain(segments, indirect)
	if err != nil {
		return 0, err
	}
	c, err := d.finish(id)
	return c.Written, err
}

// HeaderSize is the size in bytes of what PutHeader writes.
const HeaderSize = headerSize

// PutHeader writes a request's header (struct virtio_blk_req up to its data) to the start of b.
func PutHeader(b []byte, op Op, sector uint64) {
	binary.LittleEndian.PutUint32(b, uint32(op))
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint64(b[8:], sector)
}
