package virtq

import "cowblk/vhost/virtq/internal/word"

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
