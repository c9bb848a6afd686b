package virtq

import (
	"encoding/binary"
	"fmt"

	"cowblk/vhost/guest"
)

// maxChainBytes limits a chain, readable and writable parts together, so that a used length fits
// its 32 bits; the specification's limit is one more (2.7.5.2).
const maxChainBytes = 1<<32 - 1

// maxSlices limits the slices of a chain. A descriptor gives one slice for each region that it
// spans, and a hostile driver can make each of 1,024 descriptors span 509 regions; a correct
// driver's buffers cross each border once.
const maxSlices = 2 * MaxChain

// keptSlices is the capacity, for each direction, that a chain keeps between uses: more than a
// driver needs within the usual limits of segments.
const keptSlices = 256

// Descriptor flags (virtio 1.2, 2.7.5).
const (
	DescNext     = 1 // VIRTQ_DESC_F_NEXT: Next is valid
	DescWrite    = 2 // VIRTQ_DESC_F_WRITE: the device writes the buffer
	DescIndirect = 4 // VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors
)

// Desc is one descriptor, as a copy.
type Desc struct {
	Addr  uint64 // guest physical address
	Len   uint32 // bytes
	Flags uint16
	Next  uint16 // valid with DescNext
}

// Put writes d to p, DescSize bytes, as the ring holds it.
func (d Desc) Put(p []byte) {
	binary.LittleEndian.PutUint64(p, d.Addr)
	binary.LittleEndian.PutUint64(p[8:], uint64(d.Len)|uint64(d.Flags)<<32|uint64(d.Next)<<48)
}

// descOf decodes a private copy of a descriptor.
func descOf(raw *[DescSize]byte) Desc {
	hi := binary.LittleEndian.Uint64(raw[8:])
	return Desc{
		Addr:  binary.LittleEndian.Uint64(raw[:]),
		Len:   uint32(hi),
		Flags: uint16(hi >> 32),
		Next:  uint16(hi >> 48),
	}
}

// Chain is one chain of descriptors as byte slices of guest memory. The slices are valid while the
// caller holds the memory table given to Load, and until the next Load into the same Chain, which
// reuses their arrays.
type Chain struct {
	Head               uint16
	Readable, Writable [][]byte // no empty slices; one descriptor may give several
	ReadLen, WriteLen  uint64   // bytes

	writableSeen bool // a device-writable descriptor was read, perhaps an empty one
}

// Reset empties the chain and keeps its capacity.
func (c *Chain) Reset() {
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.ReadLen, c.WriteLen = 0, 0
	c.writableSeen = false
}

// Wide reports whether the chain uses more memory than it keeps between uses.
func (c *Chain) Wide() bool { return cap(c.Readable) > keptSlices || cap(c.Writable) > keptSlices }

// Trim frees that memory. c's slices must not be used any more.
func (c *Chain) Trim() {
	if c.Wide() {
		*c = Chain{Head: c.Head}
	}
}

// Load fills c with the chain that starts at c.Head, which the caller got from Next. Every
// descriptor is read once, copied and checked. It allocates only while c's arrays grow. Errors wrap
// ErrBroken and break the queue; c is then empty.
func (q *Split) Load(t *guest.Table, c *Chain) error {
	c.Reset()
	if q.broken != nil {
		return q.broken
	}
	if c.Head >= q.num {
		return q.fail(fmt.Errorf("chain %d: the ring has %d descriptors: %w", c.Head, q.num,
			ErrBroken))
	}
	if err := q.walk(t, c); err != nil {
		c.Reset()
		return q.fail(fmt.Errorf("chain %d: %w: %w", c.Head, err, ErrBroken))
	}
	return nil
}

// walk follows the chain through the descriptor table, and at its end through an indirect table
// (2.7.5.3.2: any number of direct descriptors may precede the one that refers to the table).
//
// There is no set of visited descriptors. A chain cannot have more descriptors than its ring
// (2.7.5.3.1), so a longer one is a loop.
func (q *Split) walk(t *guest.Table, c *Chain) error {
	limit := min(int(q.num), MaxChain)
	i := c.Head
	for n := 0; ; n++ {
		if n == limit {
			return fmt.Errorf("more than %d descriptors, or a loop", limit)
		}
		d := q.read(q.desc, int(i))
		if d.Flags&DescIndirect != 0 {
			return q.walkIndirect(t, c, d, MaxChain-n)
		}
		if err := c.add(t, d); err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
		if d.Flags&DescNext == 0 {
			return nil
		}
		if i = d.Next; i >= q.num {
			return fmt.Errorf("next descriptor is %d, the ring has %d", i, q.num)
		}
	}
}

// walkIndirect follows the table that d refers to, of at most limit entries. DescWrite in d has no
// meaning and is ignored (2.7.5.3.2).
func (q *Split) walkIndirect(t *guest.Table, c *Chain, d Desc, limit int) error {
	switch {
	case !q.indirect:
		return fmt.Errorf("indirect descriptor, but RING_INDIRECT_DESC was not negotiated")
	case d.Flags&DescNext != 0:
		return fmt.Errorf("indirect descriptor with a next descriptor") // 2.7.5.3.1
	case d.Len == 0 || d.Len%DescSize != 0:
		return fmt.Errorf("indirect table of %d bytes: expected a multiple of %d, not 0", d.Len,
			DescSize)
	case d.Len/DescSize > uint32(limit):
		return fmt.Errorf("indirect table of %d descriptors: at most %d fit", d.Len/DescSize, limit)
	}
	table, err := t.Slice(d.Addr, uint64(d.Len))
	if err != nil {
		return fmt.Errorf("indirect table: %w", err)
	}
	entries := int(d.Len / DescSize)
	for i, n := 0, 0; ; n++ {
		if n == entries {
			return fmt.Errorf("indirect table of %d descriptors: a loop", entries)
		}
		d := q.read(table, i)
		if d.Flags&DescIndirect != 0 {
			return fmt.Errorf("indirect table, descriptor %d: indirect again", i) // 2.7.5.3.1
		}
		if err := c.add(t, d); err != nil {
			return fmt.Errorf("indirect table, descriptor %d: %w", i, err)
		}
		if d.Flags&DescNext == 0 {
			return nil
		}
		if i = int(d.Next); i >= entries {
			return fmt.Errorf("indirect table of %d descriptors: next descriptor is %d", entries, i)
		}
	}
}

// read copies descriptor i of a table to private memory, then decodes the copy, so that no later
// load of a field sees a concurrent change by the driver. An indirect table need not be aligned.
func (q *Split) read(table []byte, i int) Desc {
	copy(q.raw[:], table[DescSize*i:DescSize*i+DescSize])
	return descOf(&q.raw)
}

// add appends the buffer of d. An empty one adds nothing, and its address is not checked: the
// specification neither forbids it nor gives it a meaning.
func (c *Chain) add(t *guest.Table, d Desc) (err error) {
	if c.ReadLen+c.WriteLen+uint64(d.Len) > maxChainBytes {
		return fmt.Errorf("the chain is longer than %d bytes", uint64(maxChainBytes))
	}
	if d.Flags&DescWrite != 0 {
		c.Writable, err = t.Append(c.Writable, d.Addr, uint64(d.Len))
		c.writableSeen = true
		c.WriteLen += uint64(d.Len)
	} else {
		if c.writableSeen { // 2.7.4.2
			return fmt.Errorf("device-readable after a device-writable one")
		}
		c.Readable, err = t.Append(c.Readable, d.Addr, uint64(d.Len))
		c.ReadLen += uint64(d.Len)
	}
	if len(c.Readable)+len(c.Writable) > maxSlices {
		return fmt.Errorf("the chain's buffers are in more than %d pieces", maxSlices)
	}
	return err
}
