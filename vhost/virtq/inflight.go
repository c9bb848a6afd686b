package virtq

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"cowblk/vhost/virtq/internal/word"
)

// The region in which a queue records requests in flight for its successor (vhost-user, "Inflight
// I/O tracking", QueueRegionSplit): a header, then one state (DescStateSplit) for each descriptor;
// only those of heads have a meaning. Offsets and sizes in bytes. A packed ring has another layout.
const (
	inflightFeatures = 0  // le64: 0
	inflightVersion  = 8  // le16: 0 is a buffer that was never used
	inflightNum      = 10 // le16: number of states
	inflightLast     = 12 // le16: head of the list of the last batch (last_batch_head)
	inflightUsed     = 14 // le16: the used index, once the batch's states are cleared (used_idx)
	inflightStates   = 16

	stateSize    = 16
	stateMark    = 0 // 1 in flight, else 0; the three bytes after it are padding
	stateLink    = 4 // two bytes of padding, le16 next: the list of the last batch
	stateCounter = 8 // le64: order in which heads were taken
)

const inflightVersion1 = 1

// inflightAlign is the alignment of the size of each queue's region: a cache line.
const inflightAlign = 64

// InflightSize returns the size in bytes of one queue's region in an in-flight buffer for split
// rings of up to num descriptors.
func InflightSize(num uint16) int {
	return (inflightStates + stateSize*int(num) + inflightAlign - 1) &^ (inflightAlign - 1)
}

// InflightPadding returns the unused end of a region for rings of up to num descriptors, 0 to 48
// bytes (16 at least if num is a power of two). A Backend may keep its own data there.
func InflightPadding(mem []byte, num uint16) []byte { return mem[state(num):] }

// track makes q keep its region in mem, for rings of up to num descriptors, and restores the
// requests in flight from the region and the ring; the cursors follow them. A region that was never
// used is initialised instead. Errors wrap ErrBroken.
func (q *Split) track(mem []byte, num uint16) error {
	k := &q.inflight
	k.mem = mem
	k.batch = make([]uint16, 0, q.num)
	version, features := word.Load16(mem, inflightVersion),
		binary.LittleEndian.Uint64(mem[inflightFeatures:])
	if version == 0 {
		k.format(num, q.published)
		return nil
	}
	if found := word.Load16(mem, inflightNum); version != inflightVersion1 || features != 0 ||
		found != num {
		return fmt.Errorf("version %d, features %#x, %d states; expected %d, 0 and %d: %w",
			version, features, found, inflightVersion1, num, ErrBroken)
	}
	// Entries that the driver made available and has not seen used. All requests in flight are
	// among them.
	waits := word.Load16(q.avail, RingIdx) - q.published
	if waits == 0 {
		// The region's content is about a ring that has been set up anew.
		k.format(num, q.published)
		q.next, q.seen = q.published, q.published
		return nil
	}
	if waits > q.num {
		return fmt.Errorf("available index is %d past the used index, the ring has %d entries: %w",
			waits, q.num, ErrBroken)
	}
	if err := q.finishBatch(); err != nil {
		return err
	}
	if err := q.findMarked(num); err != nil {
		return err
	}
	n := uint16(len(k.resume))
	if n > waits {
		return fmt.Errorf("%d requests in flight, the driver waits for %d: %w", n, waits, ErrBroken)
	}
	q.next = q.published + n
	q.seen = q.next
	return nil
}

// format initialises the region. The version is stored last: until then the region counts as never
// used.
func (k *tracker) format(num, used uint16) {
	word.Store32(k.mem, inflightVersion, 0)
	clear(k.mem[:state(num)])
	binary.LittleEndian.PutUint16(k.mem[inflightUsed:], used)
	word.Store32(k.mem, inflightVersion, inflightVersion1|uint32(num)<<16)
}

// finishBatch completes what an earlier process left undone after it moved the used index (step 3).
func (q *Split) finishBatch() error {
	k := &q.inflight
	head := word.Load16(k.mem, inflightLast)
	k.last = head
	n := q.published - word.Load16(k.mem, inflightUsed)
	if n > q.num {
		return fmt.Errorf("used index %d is %d past the one recorded, the ring has %d entries: %w",
			q.published, n, q.num, ErrBroken)
	}
	for range n {
		if head >= q.num {
			return fmt.Errorf("last batch: head %d, the ring has %d descriptors: %w", head, q.num,
				ErrBroken)
		}
		binary.LittleEndian.PutUint32(k.mem[state(head)+stateMark:], 0)
		head = word.Load16(k.mem, state(head)+stateLink+2)
	}
	word.Store32(k.mem, inflightLast, uint32(k.last)|uint32(q.published)<<16)
	return nil
}

// findMarked sets inflight.resume to the marked heads, oldest first.
func (q *Split) findMarked(num uint16) error {
	k := &q.inflight
	type found struct {
		counter uint64
		head    uint16
	}
	var all []found // copies, because the region may change
	for head := range num {
		switch mark := k.mem[state(head)+stateMark]; {
		case mark == 0:
			continue
		case mark != 1 || head >= q.num:
			return fmt.Errorf("head %d is marked %d, the ring has %d descriptors: %w", head, mark,
				q.num, ErrBroken)
		}
		counter := binary.LittleEndian.Uint64(k.mem[state(head)+stateCounter:])
		all = append(all, found{counter, head})
		k.counter = max(k.counter, counter+1)
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.counter, b.counter), cmp.Compare(a.head, b.head))
	})
	for _, f := range all {
		k.resume = append(k.resume, f.head)
	}
	return nil
}
