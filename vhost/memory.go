package vhost

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"cowblk/vhost/guest"
)

// memoryAdvice says how a front-end is told to share the guest's memory.
const memoryAdvice = "share the guest's memory: QEMU's -object memory-backend-memfd,id=mem,size=SIZE,share=on with -machine memory-backend=mem, " +
	"libvirt's <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

// Front-ends may announce memory after the rings, and a driver may have nothing to ask
// for at first: it is said what is missing when it has been missing for so long.
const (
	memoryGrace  = time.Second
	requestGrace = 2 * time.Second
)

// memoryWatch warns of guest memory that is not shared: without a warning the guest
// hangs and nobody says why. Its timers' functions run on goroutines of their own, and
// none begins after stop.
type memoryWatch struct {
	missing   *time.Timer // a ring waits for memory; nil: none did
	ring      int         // which one
	untouched *time.Timer // a ring in memory that nobody has written was started; nil: none was
	shared    atomic.Bool // there is a memory table with a region
}

// ringWaits is told that ring i could run if there were memory.
func (s *session) ringWaits(i int) {
	if s.watch.missing != nil {
		return
	}
	s.watch.ring = i
	s.watch.missing = time.AfterFunc(memoryGrace, func() { s.warnMissing(i) })
}

func (s *session) warnMissing(i int) {
	if !s.watch.shared.Load() {
		s.log.Warn("a ring was started, and the front-end shares no memory: the guest waits for this disk", "ring", i, "advice", memoryAdvice)
	}
}

// ringStarts is told of a ring before anything of it is read. With share=off QEMU passes
// the memory's file on, but the guest writes to copies of its pages.
func (s *session) ringStarts(r *ring, i int) {
	if s.watch.untouched != nil {
		return
	}
	if touched, known := s.memory.Touched(r.avail); touched || !known {
		return
	}
	s.watch.untouched = time.AfterFunc(requestGrace, func() {
		if s.opts.Served == nil || !s.opts.Served() {
			s.log.Warn("no request has come, and nothing was ever written to the ring in the memory that the front-end shares: it may not be the guest's memory",
				"ring", i, "advice", memoryAdvice)
		}
	})
}

// stop ends the watch with the session. A front-end that has gone before the time was
// over is warned of all the same.
func (s *session) stopWatch() {
	if t := s.watch.missing; t != nil && t.Stop() {
		s.warnMissing(s.watch.ring)
	}
	if t := s.watch.untouched; t != nil {
		t.Stop()
	}
}

// explainOutside adds what to do to the error of a ring that lies outside of the memory
// that is shared.
func explainOutside(err error) error {
	if errors.Is(err, guest.ErrOutside) {
		return fmt.Errorf("%w (%s)", err, memoryAdvice)
	}
	return err
}
