package vhost

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"cowblk/vhost/guest"
)

// MemoryAdvice says how a front-end is told to share the guest's memory.
const MemoryAdvice = "share the guest's memory: QEMU's -object memory-backend-memfd,id=mem,size=SIZE,share=on with -machine memory-backend=mem, " +
	"libvirt's <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

// memoryGrace is how long a ring may wait for memory before that is told: front-ends may
// announce it after the rings.
const memoryGrace = time.Second

// memoryWatch warns of a ring without guest memory: without a warning the guest hangs and
// nobody says why. The timer's function runs on a goroutine of its own.
type memoryWatch struct {
	missing *time.Timer // a ring waits for memory; nil: none did
	ring    int         // which one
	shared  atomic.Bool // there is a memory table with a region
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
		s.log.Warn("a ring was started, and the front-end shares no memory: the guest waits for this disk", "ring", i, "advice", MemoryAdvice)
	}
}

// stopWatch ends the watch with the session. A front-end that has gone before the time was
// over is warned of all the same.
func (s *session) stopWatch() {
	if t := s.watch.missing; t != nil && t.Stop() {
		s.warnMissing(s.watch.ring)
	}
}

// explainOutside adds what to do to the error of a ring that lies outside of the memory
// that is shared.
func explainOutside(err error) error {
	if errors.Is(err, guest.ErrOutside) {
		return fmt.Errorf("%w (%s)", err, MemoryAdvice)
	}
	return err
}
