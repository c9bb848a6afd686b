package control

import "sync"

// outbox is one client's output queue, between those who have lines for it and its
// writer. What is queued never exceeds the limit by more than one reply.
type outbox struct {
	mu     sync.Mutex
	change sync.Cond // on mu: queued, taken, ended or closed
	queued []byte
	reuse  []byte // the writer's last buffer, to be reused
	limit  int    // bytes
	ended  bool   // nothing more will be put; what is queued is still to be written
	closed bool   // the connection is gone
}

func newOutbox(limit int) *outbox {
	o := &outbox{limit: limit}
	o.change.L = &o.mu
	return o
}

// tryPut queues line if there is room, and never waits. false: the client does not read
// and should be closed.
func (o *outbox) tryPut(line []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || o.closed {
		return true // on its way out already
	}
	if len(o.queued)+len(line) > o.limit {
		return false
	}
	o.queued = append(o.queued, line...)
	o.change.Broadcast()
	return true
}

// put queues line, first waiting until less than half the limit is queued: the other
// half is left to offer, so that a client with many commands under way is not taken
// for one that does not read.
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

// take waits for lines and returns all there are; nil means that there will be none.
// The slice is valid until the next call.
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
		o.reuse = nil // a burst's memory is not kept
	}
	o.change.Broadcast()
	return out
}

// end lets the writer finish what is queued and stop.
func (o *outbox) end() {
	o.mu.Lock()
	o.ended = true
	o.change.Broadcast()
	o.mu.Unlock()
}

// close drops what is queued and wakes everyone.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed, o.queued = true, nil
	o.change.Broadcast()
	o.mu.Unlock()
}
