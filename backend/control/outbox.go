package control

import "sync"

// outbox is the output queue of one client. It exceeds limit by at most one reply.
type outbox struct {
	mu     sync.Mutex
	change sync.Cond // on mu: queued, taken, ended or closed
	queued []byte
	reuse  []byte // the writer's last buffer
	limit  int    // bytes
	ended  bool   // no further lines; queued ones are still written
	closed bool   // the connection is gone
}

func newOutbox(limit int) *outbox {
	o := &outbox{limit: limit}
	o.change.L = &o.mu
	return o
}

// tryPut queues line without waiting. It returns false if the queue is full because the client does
// not read; the caller then closes the client.
func (o *outbox) tryPut(line []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || o.closed {
		return true // the session is ending
	}
	if len(o.queued)+len(line) > o.limit {
		return false
	}
	o.queued = append(o.queued, line...)
	o.change.Broadcast()
	return true
}

// put queues line when less than half the limit is queued. The other half is reserved for tryPut,
// so that pending replies do not make a client look as if it did not read events.
func (o *outbox) put(line []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queued) > o.limit/2 && !o.closed {
		o.change.Wait()
	}
	if !o.closed {
		o.queued = append(o.queued, line...)
		o.change.Broadcast()
	}
}

// take waits for lines and returns all that are queued, valid until the next call; nil: there will
// be none.
func (o *outbox) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queued) == 0 && !o.ended && !o.closed {
		o.change.Wait()
	}
	if len(o.queued) == 0 || o.closed {
		return nil
	}
	out := o.queued
	o.queued, o.reuse = o.reuse[:0], out
	if cap(o.reuse) > maxText {
		o.reuse = nil // do not keep the memory of a burst
	}
	o.change.Broadcast()
	return out
}

// end lets the writer finish the queued lines and stop.
func (o *outbox) end() {
	o.mu.Lock()
	o.ended = true
	o.change.Broadcast()
	o.mu.Unlock()
}

// close drops the queued lines and wakes all waiters.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed, o.queued = true, nil
	o.change.Broadcast()
	o.mu.Unlock()
}
