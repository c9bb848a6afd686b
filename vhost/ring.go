package vhost

import (
	"errors"
	"fmt"
)

// ring is what the front-end has told about one virtqueue. It may be told in
// any order; settle brings the Backend into the state that follows.
//
// The session keeps its own copies of the descriptors and gives the Backend
// duplicates, because a ring may stop and start again (SET_VRING_ENABLE) with
// the same ones.
type ring struct {
	num               uint16
	base              uint16
	desc, avail, used uint64
	kick, call, err   int // -1: none

	haveAddr bool
	haveKick bool // SET_VRING_KICK came, with a descriptor or without
	enabled  bool // SET_VRING_ENABLE
	running  bool // the Backend processes it
}

func newRing() ring { return ring{kick: -1, call: -1, err: -1} }

// close forgets everything and closes the session's descriptors. Not for a
// running ring.
func (r *ring) close() {
	closeFD(r.kick)
	closeFD(r.call)
	closeFD(r.err)
	*r = newRing()
}

// dropKick makes a stopped ring wait for the next SET_VRING_KICK.
func (r *ring) dropKick() {
	closeFD(r.kick)
	r.kick, r.haveKick = -1, false
}

// started: all that is needed to process the ring has arrived ("Ring states").
// The specification starts a ring at its first kick; a ring nobody kicked has
// nothing to do, so it makes no difference when SET_VRING_KICK starts it, and
// a front-end that polls never kicks.
func (r *ring) started() bool { return r.num != 0 && r.haveAddr && r.haveKick }

// settle starts or stops ring i so that it runs exactly if it should.
func (s *session) settle(i int) error {
	r := &s.rings[i]
	ready := r.started() && s.haveFeatures && (r.enabled || s.alwaysEnabled())
	should := ready && s.memory != nil
	if ready && !should {
		s.ringWaits(i)
	}
	switch {
	case should && !r.running:
		return s.start(i)
	case !should && r.running:
		return s.stop(i)
	}
	return nil
}

// alwaysEnabled: without VHOST_USER_F_PROTOCOL_FEATURES a ring starts directly
// in the enabled state.
func (s *session) alwaysEnabled() bool { return s.features&FeatureProtocolFeatures == 0 }

func (s *session) start(i int) (err error) {
	r := &s.rings[i]
	q := Queue{
		Index: i, Num: r.num, Base: r.base,
		Desc: r.desc, Avail: r.avail, Used: r.used,
		Kick: -1, Call: -1, Err: -1,
		Features: s.features &^ FeatureProtocolFeatures,
		Memory:   s.memory,
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting ring %d: %w", i, err)
		}
	}()
	s.track(&q)
	if q.Kick, err = dupFD(r.kick); err != nil {
		return err
	}
	if q.Call, err = dupFD(r.call); err != nil {
		closeFD(q.Kick)
		return err
	}
	if q.Err, err = dupFD(r.err); err != nil {
		closeFD(q.Kick)
		closeFD(q.Call)
		return err
	}
	if err = s.be.StartQueue(q); err != nil {
		return explainOutside(err)
	}
	r.running = true
	return nil
}

// stop returns when the ring's last request has completed. The ring counts as
// stopped even if the Backend reports an error.
func (s *session) stop(i int) error {
	r := &s.rings[i]
	if !r.running {
		return nil
	}
	base, err := s.be.StopQueue(i)
	r.running = false
	if err != nil {
		return fmt.Errorf("stopping ring %d: %w", i, err)
	}
	r.base = base
	return nil
}

// stopAll stops and disables every ring; the first error is returned after all
// have been tried.
func (s *session) stopAll() error {
	var first error
	for i := range s.rings {
		if err := s.stop(i); err != nil && first == nil {
			first = err
		}
		s.rings[i].enabled = false
	}
	return first
}

// change applies what a message says about ring i and lets the ring settle. A
// running ring stops first and continues where it stopped, so that it takes up
// addresses and a kick descriptor that changed. If the new state cannot run,
// the old one is restored, and an error says why.
func (s *session) change(i int, apply func(*ring)) error {
	r := &s.rings[i]
	wasRunning := r.running
	if err := s.stop(i); err != nil {
		return fatal{err}
	}
	old := *r
	apply(r)
	err := s.settle(i)
	if err == nil {
		return nil
	}
	*r = old
	if wasRunning {
		if again := s.settle(i); again != nil {
			return fatal{errors.Join(err, again)}
		}
	}
	return err
}

// settleAll lets every ring settle after a change that concerns all of them.
// It cannot be undone, so a ring that fails to start is the end.
func (s *session) settleAll() error {
	for i := range s.rings {
		if err := s.settle(i); err != nil {
			return fatal{err}
		}
	}
	return nil
}

func (s *session) anyRunning() bool {
	for i := range s.rings {
		if s.rings[i].running {
			return true
		}
	}
	return false
}
