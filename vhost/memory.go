package vhost

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"cowblk/vhost/guest"
)

// MemoryAdvice says how to make a front-end share the guest's memory.
const MemoryAdvice = "share the guest's memory: QEMU's -object memory-backend-memfd,id=mem,size=SIZE,share=on with -machine memory-backend=mem, " +
	"libvirt's <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

// memoryGrace is how long a ring may wait for memory before a warning, because front-ends may send
// it after the rings.
const memoryGrace = time.Second

// memoryWatch warns of a ring without guest memory, with which the guest would hang silently. The
// timer's function runs on its own goroutine.
type memoryWatch struct {
	missing *time.Timer // a ring waits for memory; nil: none did
	ring    int         // which one
	shared  atomic.Bool // there is a memory table with a region
}

// ringWaits records that ring i could run if there were memory.
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

// stopWatch ends the watch with the session. If a ring waited, it warns even if the front-end
// disconnected early.
func (s *session) stopWatch() {
	if t := s.watch.missing; t != nil && t.Stop() {
		s.warnMissing(s.watch.ring)
	}
}

// explainOutside adds advice to the error of a ring outside the shared memory.
func explainOutside(err error) error {
	if errors.Is(err, guest.ErrOutside) {
		return fmt.Errorf("%w (%s)", err, MemoryAdvice)
	}
	return err
}
