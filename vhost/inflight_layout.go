package vhost

import (
	"fmt"

	"cowblk/vhost/virtq"
)

// inflightLayout gives the place of each ring's region in an inflight buffer.
//
// The queue size of GET_INFLIGHT_FD does not bound the rings. QEMU 10.0.13 sends its property (128
// by default) and gives every ring 1,024 descriptors, of which SeaBIOS uses 256 and Linux all. So
// the buffer that this package makes has two parts, the second one only if the queue size is below
// the largest ring accepted (Options.MaxQueueSize):
//
//	small  rings regions for rings of up to the queue size
//	large  rings regions for rings of up to MaxQueueSize
//
// The size of a ring selects the part. The small part is the whole buffer of the versions before
// this layout, so the front-end may change from this version to an older one and back.
//
// At SET_INFLIGHT_FD the front-end repeats Size and QueueSize, and Size alone shows which parts the
// buffer has (findInflightLayout).
type inflightLayout struct {
	rings        int // regions in each part
	small, large inflightPart
}

// inflightPart is a sequence of regions of one size, one per ring.
type inflightPart struct {
	at  int    // offset of ring 0's region, bytes
	num uint16 // largest ring, descriptors; 0: there is no such part
}

// stride is the size of one region, bytes.
func (p inflightPart) stride() int {
	if p.num == 0 {
		return 0
	}
	return virtq.InflightSize(p.num)
}

// newInflightLayout is the layout of a new buffer for d.Queues rings. largest is the largest ring
// accepted, in descriptors.
func newInflightLayout(d Inflight, largest uint16) inflightLayout {
	l := inflightLayout{rings: int(d.Queues), small: inflightPart{num: min(d.QueueSize, largest)}}
	if l.small.num < largest {
		l.large = inflightPart{at: l.rings * l.small.stride(), num: largest}
	}
	return l
}

// findInflightLayout recognises the layout of the buffer d. Errors wrap [ErrProtocol].
//
// The size of a buffer with both parts is a multiple of one ring's regions of both. With the
// default MaxQueueSize no buffer with only the small part has such a size below 258 rings, and
// MaxQueues is 256: a large region is 257 cache lines, a prime number. With another MaxQueueSize, a
// buffer with exactly the size of the small part is taken for that.
//
// A buffer may be for fewer rings than the front-end now has. The additional rings have no region
// then.
func findInflightLayout(d Inflight, largest uint16) (inflightLayout, error) {
	l := newInflightLayout(d, largest)
	small, both := uint64(l.small.stride()), uint64(l.small.stride()+l.large.stride())
	if n := d.Size / both; l.large.num != 0 && d.Size%both == 0 && n >= 1 && n <= MaxQueues &&
		d.Size != uint64(d.Queues)*small {
		l.large.at = int(n * small) // it follows the small regions of all rings
		l.rings = min(l.rings, int(n))
		return l, nil
	}
	if d.Size < small {
		return l, fmt.Errorf("inflight buffer of %d bytes, expected at least %d for a ring of %d descriptors: %w",
			d.Size, small, l.small.num, ErrProtocol)
	}
	l.large = inflightPart{}
	l.rings = int(min(uint64(l.rings), d.Size/small))
	return l, nil
}

// size is the end of the last region, bytes.
func (l inflightLayout) size() int {
	if l.large.num != 0 {
		return l.large.at + l.rings*l.large.stride()
	}
	return l.rings * l.small.stride()
}

// largest returns the largest ring that has regions, in descriptors.
func (l inflightLayout) largest() uint16 { return max(l.small.num, l.large.num) }

// region returns offset and size of ring i's region, in bytes, and its capacity in descriptors. num
// is 0 if the buffer has no region for a ring of that index and size.
func (l inflightLayout) region(i int, descriptors uint16) (at, size int, num uint16) {
	for _, p := range [...]inflightPart{l.small, l.large} {
		if i < l.rings && descriptors <= p.num {
			return p.at + i*p.stride(), p.stride(), p.num
		}
	}
	return 0, 0, 0
}

// check reports whether d is for at most queues rings. Its queue size may exceed the largest ring
// accepted, because it is only the front-end's configuration.
func (d Inflight) check(queues int) error {
	if d.Queues == 0 || int(d.Queues) > queues {
		return fmt.Errorf("inflight buffer for %d rings, expected 1 to %d: %w", d.Queues, queues,
			ErrProtocol)
	}
	if d.QueueSize == 0 {
		return fmt.Errorf("inflight buffer for rings of 0 descriptors, expected at least 1: %w",
			ErrProtocol)
	}
	return nil
}
