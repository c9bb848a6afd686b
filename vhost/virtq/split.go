package virtq

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cowblk/vhost/virtq/internal/word"
)

// ErrBroken reports that the driver violated the protocol. It is final for the queue: every later
// Next returns it again, until the driver resets the device and the ring is set up anew.
var ErrBroken = errors.New("virtqueue is broken")

// SplitConfig describes a split ring. Desc, Avail and Used come from MapSplit.
type SplitConfig struct {
	Num               uint16 // descriptors: a power of two, at most MaxNum
	Desc, Avail, Used []byte
	Base              uint16 // index of the next available entry (SET_VRING_BASE)
	EventIdx          bool   // VIRTIO_F_RING_EVENT_IDX negotiated
	Indirect          bool   // VIRTIO_F_RING_INDIRECT_DESC negotiated
	// Inflight is the queue's region of the in-flight buffer, InflightSize of InflightNum bytes;
	// nil: requests in flight are not tracked. InflightNum is the size in descriptors that the
	// buffer was made for, at least Num.
	Inflight    []byte
	InflightNum uint16
}

// Split is a split virtqueue, the device's side. It belongs to one goroutine.
type Split struct {
	num, mask         uint16
	eventIdx          bool
	indirect          bool
	desc, avail, used []byte
	usedEvent         int // offset in avail, bytes
	availEvent        int // offset in used, bytes

	// Cursors, free-running modulo 2^16 as in the rings. They are private: the ring's own indexes
	// are never trusted.
	next      uint16 // next available entry to take
	seen      uint16 // available index as last read and checked
	pushed    uint16 // used index after the elements pushed so far
	published uint16 // used index that the driver sees
	usedFlags uint16
	signalled bool // a Publish has decided about a call since the start

	busy     []uint64 // one bit per head: taken by Next, not yet pushed
	inFlight int      // bits set in busy
	inflight tracker
	raw      [DescSize]byte
	broken   error
}

// NewSplit starts a split ring. The available index starts at cfg.Base. The used index is read from
// the ring itself, because the protocol does not pass it and a device that takes over from another
// must continue there. Nothing is written to the ring yet. Errors wrap ErrRing.
//
// With an in-flight region that another device used for this ring, Next first returns the heads
// that were in flight, then the rest of the available ring; cfg.Base, which a front-end cannot know
// after a crash, is ignored. A region that contradicts itself or the ring breaks the queue: the
// first Next returns the error.
func NewSplit(cfg SplitConfig) (*Split, error) {
	if err := checkNum(cfg.Num); err != nil {
		return nil, err
	}
	q := &Split{
		num: cfg.Num, mask: cfg.Num - 1,
		eventIdx: cfg.EventIdx, indirect: cfg.Indirect,
		usedEvent: UsedEventOffset(cfg.Num), availEvent: AvailEventOffset(cfg.Num),
		next: cfg.Base, seen: cfg.Base,
		busy: make([]uint64, (int(cfg.Num)+63)/64),
	}
	if err := q.SetMemory(cfg.Desc, cfg.Avail, cfg.Used); err != nil {
		return nil, err
	}
	q.published = word.Load16(q.used, RingIdx)
	q.pushed = q.published
	if cfg.Inflight == nil {
		return q, nil
	}
	if cfg.InflightNum < cfg.Num {
		return nil, fmt.Errorf("in-flight region for rings of %d descriptors, the ring has %d: %w",
			cfg.InflightNum, cfg.Num, ErrRing)
	}
	if err := checkPart("in-flight region", cfg.Inflight, InflightSize(cfg.InflightNum),
		inflightAlign); err != nil {
		return nil, err
	}
	if err := q.track(cfg.Inflight[:InflightSize(cfg.InflightNum)], cfg.InflightNum); err != nil {
		_ = q.fail(fmt.Errorf("in-flight region: %w", err))
	}
	return q, nil
}

// SetMemory moves the live ring to a new mapping of the same guest memory (the memory table was
// replaced). Cursors and requests in flight stay as they are. On an error, which wraps ErrRing, the
// old mapping stays in use.
func (q *Split) SetMemory(desc, avail, used []byte) error {
	if err := checkPart("descriptor table", desc, DescTableSize(q.num), descAlign); err != nil {
		return err
	}
	if err := checkPart("available ring", avail, AvailSize(q.num), availAlign); err != nil {
		return err
	}
	if err := checkPart("used ring", used, UsedSize(q.num), usedAlign); err != nil {
		return err
	}
	q.desc, q.avail, q.used = desc, avail, used
	return nil
}

// Next returns the head of the next available chain; ok is false when there is none. The driver's
// index is read again only when all entries up to it have been taken. Errors wrap ErrBroken.
func (q *Split) Next() (head uint16, ok bool, err error) {
	if q.broken != nil {
		return 0, false, q.broken
	}
	if q.next == q.seen {
		if resume := q.inflight.resume; len(resume) > 0 {
			// It is marked already.
			q.inflight.resume = resume[1:]
			q.markTaken(resume[0])
			return resume[0], true, nil
		}
		if err := q.loadAvail(); err != nil {
			return 0, false, err
		}
		if q.next == q.seen {
			return 0, false, nil
		}
	}
	// Ordered after the load of the index in loadAvail, an acquire that pairs with the driver's
	// write barrier before it moved the index (2.7.13.1): the entry, and the descriptors it leads
	// to, are complete.
	head = word.Load16(q.avail, RingEntries+2*int(q.next&q.mask))
	if head >= q.num {
		return 0, false, q.fail(
			fmt.Errorf("available entry %d: head %d, the ring has %d descriptors: %w",
				q.next, head, q.num, ErrBroken))
	}
	if q.busy[head>>6]&(1<<(head&63)) != 0 {
		// The caller keeps a request's state by its head; two requests with one head would share
		// it.
		return 0, false, q.fail(fmt.Errorf("available entry %d: head %d is still in flight: %w",
			q.next, head, ErrBroken))
	}
	if q.inflight.mem != nil {
		q.inflight.mark(head)
	}
	q.markTaken(head)
	q.next++
	return head, true, nil
}

// markTaken records that the caller has head.
func (q *Split) markTaken(head uint16) {
	q.busy[head>>6] |= 1 << (head & 63)
	q.inFlight++
}

// loadAvail reads the available index, which only the driver writes.
func (q *Split) loadAvail() error {
	idx := word.Load16(q.avail, RingIdx)
	if n := idx - q.next; n > q.num {
		return q.fail(fmt.Errorf("available index %d is %d past %d, the ring has %d entries: %w",
			idx, n, q.next, q.num, ErrBroken))
	}
	q.seen = idx
	return nil
}

// Push adds the used element of a completed chain. written is the number of bytes written to its
// device-writable part, counted from its start without a gap. The driver sees the element after the
// next Publish, not before. head must come from Next and must not have been pushed yet, so the used
// ring, as long as the available one, never overflows.
func (q *Split) Push(head uint16, written uint32) {
	off := RingEntries + UsedElemSize*int(q.pushed&q.mask)
	binary.LittleEndian.PutUint64(q.used[off:], uint64(head)|uint64(written)<<32)
	q.busy[head>>6] &^= 1 << (head & 63)
	q.inFlight--
	q.pushed++
	if q.inflight.mem != nil {
		q.inflight.batch = append(q.inflight.batch, head)
	}
}

// Base returns the index of the next available entry that has not been taken. GET_VRING_BASE
// returns it after everything in flight has been pushed and published, or stays marked in the
// in-flight region.
func (q *Split) Base() uint16 { return q.next }

// Tracked reports whether the queue records requests in flight in a region, for a successor.
func (q *Split) Tracked() bool { return q.inflight.mem != nil }

// InFlight returns the number of chains taken by Next and not yet pushed.
func (q *Split) InFlight() int { return q.inFlight }

// fail breaks the queue with err, which every later call returns.
func (q *Split) fail(err error) error {
	q.broken = err
	return err
}

// Publish makes the pushed elements visible with one store of the used index, and reports whether
// the driver wants a call for them. It is called once per batch.
//
// Only the device writes the word with the used ring's flags and index, so both are written in one
// store without a compare-and-swap. The store is a release: elements, status bytes and data are
// visible before it (2.7.8).
//
// The driver's request for a call is read after that store, and the load does not pass the store.
// The driver writes its request, then re-reads the used index (2.7.7), so either it sees the
// elements or the device sees the request. In the other order both could miss, and the guest would
// wait for ever.
func (q *Split) Publish() (notify bool) {
	if q.pushed == q.published {
		return false
	}
	old := q.published
	q.published = q.pushed
	if q.inflight.mem == nil {
		q.storeUsed()
	} else {
		q.inflight.link(old)
		q.storeUsed()
		q.inflight.clearBatch(q.published)
	}
	if !q.eventIdx {
		return word.Load16(q.avail, RingFlags)&AvailNoInterrupt == 0
	}
	event := word.Load16(q.avail, q.usedEvent)
	if !q.signalled {
		// The driver may have requested a call below the start index, from a device that died
		// before it sent the call.
		q.signalled = true
		return true
	}
	return needEvent(event, q.published, old)
}

// needEvent reports whether moving an index from old to now passes event: the other side wants to
// know when entry number event has been filled (2.7.10). All three are modulo 2^16.
func needEvent(event, now, old uint16) bool { return now-event-1 < now-old }

// SuppressKicks tells the driver that the device polls the ring. It is a hint: kicks may still
// come. With EVENT_IDX nothing is written: the event index stays behind, so at most one kick comes
// until it is moved again or the index wraps.
func (q *Split) SuppressKicks() {
	if q.eventIdx || q.broken != nil {
		return
	}
	q.usedFlags = UsedNoNotify
	q.storeUsed()
}

// EnableKicks requests a kick for the next available entry, and reports whether an entry is there
// already: the caller must then process it instead of waiting.
//
// The request is stored before the available index is loaded again, and the load does not pass the
// store. The driver stores its index, then reads the request (2.7.10), so either the device sees
// its entry or the driver sees the request.
//
// The event index shares its word with two bytes that may belong to others, so it is written by an
// AND and an OR that preserve them. A driver that reads it between the two has stored its index
// before the OR, and the load below sees that index.
//
// A broken queue requests no kicks and reports no entry.
func (q *Split) EnableKicks() (pending bool) {
	if q.broken != nil {
		return false
	}
	if q.eventIdx {
		word.Replace16(q.used, q.availEvent, q.next)
	} else {
		q.usedFlags = 0
		q.storeUsed()
	}
	// Any difference counts, also a jump, which Next reports.
	return word.Load16(q.avail, RingIdx) != q.next || len(q.inflight.resume) > 0
}

// storeUsed writes the used ring's flags and published index.
func (q *Split) storeUsed() {
	word.Store32(q.used, RingFlags, uint32(q.usedFlags)|uint32(q.published)<<16)
}

// tracker keeps a queue's region. Only the device writes the region, and reads it back once, when
// the queue starts; later decisions use only these fields. The front-end also maps the region and
// could write anything: what is read is checked, and the worst effect is a broken queue.
//
// Why a process may be killed between any two of the stores:
//
//  1. mark: counter, then the mark. A head that is not marked yet has not been
//     given to anybody; the successor finds it in the available ring again. Heads
//     are marked in the order of that ring, so the marked ones are a prefix of it,
//     and the next entry is used index + number of marks.
//  2. link: the list of the batch is complete before the used index moves.
//     Until it moves, the ring's index equals the region's copy, the list has no
//     meaning, and the batch is in flight: its marks stand. Its requests are
//     repeated; the driver has not seen their completion.
//  3. From the store of the used index on, the batch is the driver's, although
//     its marks still stand. The ring's index is ahead of the region's copy by
//     the length of the list, so the successor clears the marks of that many heads
//     of the list, as clearBatch would. Doing so twice is harmless.
//  4. The copy is stored last. From there on the list has no meaning again, so
//     the next batch may overwrite it.
//
// Only the order of stores in this thread matters, since a kill loses no store that was executed:
// not the processor's order, but the compiler's. The stores that others must not pass are
// word.Put32. (An atomic store would wait until the ones before it are in the cache, including the
// last request's data.)
type tracker struct {
	mem     []byte   // nil: the queue is not tracked
	counter uint64   // of the next head that is taken
	last    uint16   // last_batch_head as stored
	batch   []uint16 // pushed, not yet published
	resume  []uint16 // in flight when the queue started, oldest first; Next returns them first
}

// state returns the offset of head's state.
func state(head uint16) int { return inflightStates + stateSize*int(head) }

// mark marks head as in flight.
func (k *tracker) mark(head uint16) {
	at := state(head)
	binary.LittleEndian.PutUint64(k.mem[at+stateCounter:], k.counter)
	k.counter++
	word.Put32(k.mem, at+stateMark, 1)
}

// link writes the list of the batch, before the used index shows it to the driver; that store is
// atomic, so the plain ones here stay before it. used is the index still in the ring.
func (k *tracker) link(used uint16) {
	for _, head := range k.batch {
		binary.LittleEndian.PutUint32(k.mem[state(head)+stateLink:], uint32(k.last)<<16)
		k.last = head
	}
	binary.LittleEndian.PutUint32(k.mem[inflightLast:], uint32(k.last)|uint32(used)<<16)
}

// clearBatch clears the marks of the published batch and then stores the region's copy of the used
// index. used is the index in the ring.
func (k *tracker) clearBatch(used uint16) {
	for _, head := range k.batch {
		binary.LittleEndian.PutUint32(k.mem[state(head)+stateMark:], 0)
	}
	k.batch = k.batch[:0]
	word.Put32(k.mem, inflightLast, uint32(k.last)|uint32(used)<<16)
}
