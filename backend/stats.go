package backend

import (
	"sync/atomic"
	"time"

	"cowblk/cow"
	"cowblk/vhost/blk"
)

// Stats counts the requests of a disk's front-ends since the disk was exported.
type Stats struct {
	Reads       uint64 `json:"rd_operations"`
	ReadBytes   uint64 `json:"rd_bytes"`
	Writes      uint64 `json:"wr_operations"`
	WriteBytes  uint64 `json:"wr_bytes"`
	Flushes     uint64 `json:"flush_operations"`
	Discards    uint64 `json:"unmap_operations"` // DISCARD and WRITE_ZEROES
	Failed      uint64 `json:"failed_operations"`
	Refused     uint64 `json:"invalid_operations"` // answered without the engine, with an error status
	Broken      uint64 `json:"broken_queues"`
	Rejected    uint64 `json:"rejected_connections"` // closed: the front-end broke the protocol
	DriverCalls uint64 `json:"driver_calls"`
	PollHits    uint64 `json:"successful_polls"` // an idle queue found work by polling
	PollMisses  uint64 `json:"failed_polls"`     // an idle queue found none and went to sleep
	PollTime    uint64 `json:"poll_time_ns"`     // spent polling
}

// queueStats counts the requests of one worker. Only the worker writes; the atomics are for
// readers. An atomic add waits until all earlier stores, among them a request's data, are in the
// cache. So per-request counts go to fresh, and show publishes them once a batch.
type queueStats struct {
	reads, readBytes, writes, writeBytes atomic.Uint64
	flushes, discards, failed, refused   atomic.Uint64
	calls, broken                        atomic.Uint64
	pollHits, pollMisses, pollTime       atomic.Uint64

	fresh struct { // since show
		reads, readBytes, writes, writeBytes uint64
		flushes, discards, failed, refused   uint64
	}
}

// show publishes the fresh counts. The driver learns of completions later, so completed requests
// are always counted.
func (s *queueStats) show() {
	n := &s.fresh
	show(&s.reads, &n.reads)
	show(&s.readBytes, &n.readBytes)
	show(&s.writes, &n.writes)
	show(&s.writeBytes, &n.writeBytes)
	show(&s.flushes, &n.flushes)
	show(&s.discards, &n.discards)
	show(&s.failed, &n.failed)
	show(&s.refused, &n.refused)
}

func show(sum *atomic.Uint64, fresh *uint64) {
	if *fresh > 0 {
		sum.Add(*fresh)
		*fresh = 0
	}
}

// polled counts one polling period.
func (s *queueStats) polled(took time.Duration, found bool) {
	if found {
		s.pollHits.Add(1)
	} else {
		s.pollMisses.Add(1)
	}
	s.pollTime.Add(uint64(took))
}

// completed counts a request that the engine has served.
func (s *queueStats) completed(io *cow.Request, status blk.Status) {
	if status != blk.StatusOK {
		s.fresh.failed++
		return
	}
	switch io.Op {
	case cow.OpRead:
		s.fresh.reads++
		s.fresh.readBytes += uint64(io.Length)
	case cow.OpWrite:
		s.fresh.writes++
		s.fresh.writeBytes += uint64(io.Length)
	case cow.OpFlush:
		s.fresh.flushes++
	case cow.OpDiscard, cow.OpWriteZeroes:
		s.fresh.discards++
	}
}

// decided counts a request that the parser has answered.
func (s *queueStats) decided(status blk.Status) {
	if status != blk.StatusOK {
		s.fresh.refused++
	}
}

func (s *Stats) add(q *queueStats) {
	s.Reads += q.reads.Load()
	s.ReadBytes += q.readBytes.Load()
	s.Writes += q.writes.Load()
	s.WriteBytes += q.writeBytes.Load()
	s.Flushes += q.flushes.Load()
	s.Discards += q.discards.Load()
	s.Failed += q.failed.Load()
	s.Refused += q.refused.Load()
	s.Broken += q.broken.Load()
	s.DriverCalls += q.calls.Load()
	s.PollHits += q.pollHits.Load()
	s.PollMisses += q.pollMisses.Load()
	s.PollTime += q.pollTime.Load()
}

// Stats returns the device's counters, of running and of stopped queues.
func (d *Device) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum := d.past
	sum.Rejected = d.rejected.Load()
	for _, w := range d.workers {
		if w != nil {
			sum.add(&w.stats)
		}
	}
	return sum
}

// requests returns the number of requests, of any kind and outcome.
func (d *Device) requests() uint64 {
	s := d.Stats()
	return s.Reads + s.Writes + s.Flushes + s.Discards + s.Failed + s.Refused + s.Broken
}
