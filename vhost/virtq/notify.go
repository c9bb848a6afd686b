package virtq

import "cowblk/vhost/virtq/internal/word"

// Publish makes the pushed elements visible with one store of the used index,
// and says whether the driver wants a call for them. Once per batch.
//
// The word that holds the used ring's flags and index is written by the device
// alone, so both go in one store and no compare-and-swap is needed. The store
// is a release: elements, status bytes and data are visible before it (2.7.8).
//
// The driver's wish is read after that store, and the store is not passed by
// the load: the driver writes its wish, then re-reads the used index (2.7.7),
// so either it sees our elements or we see its wish. With the two the other
// way round both could miss, and the guest would wait for ever.
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
		// The driver may have asked for a call below the index we
		// started from, from a device that died before it sent it.
		q.signalled = true
		return true
	}
	return needEvent(event, q.published, old)
}

// needEvent says whether moving an index from old to now passes event: the
// other side wants to know when entry number event has been filled (2.7.10).
// All three run modulo 2^16.
func needEvent(event, now, old uint16) bool { return now-event-1 < now-old }

// SuppressKicks tells the driver that we look at the ring by ourselves. It is
// a hint: kicks may still come. With EVENT_IDX there is nothing to write: the
// event index stays behind, so at most one kick comes until it is moved again
// or the index wraps.
func (q *Split) SuppressKicks() {
	if q.eventIdx || q.broken != nil {
		return
	}
	q.usedFlags = UsedNoNotify
	q.storeUsed()
}

// EnableKicks asks for a kick for the next available entry, and says whether
// one is there already: the caller must then take it instead of waiting.
//
// The request is stored before the available index is loaded again, and the
// store is not passed by the load: the driver stores its index, then reads our
// request (2.7.10), so either we see its entry or it sees that we want a kick.
//
// The event index shares its word with two bytes that may be anybody's, so it
// is written by an AND and an OR that leave them alone. A driver that reads it
// between the two read it before the OR, hence stored its index before, and the
// load below sees that index.
//
// A broken queue wants no kicks and reports nothing pending.
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
	// Any difference counts, also a jump: Next says what is wrong with it.
	return word.Load16(q.avail, RingIdx) != q.next || len(q.inflight.resume) > 0
}

// storeUsed writes the used ring's flags and published index.
func (q *Split) storeUsed() {
	word.Store32(q.used, RingFlags, uint32(q.usedFlags)|uint32(q.published)<<16)
}
