package vhost

import (
	"errors"
	"fmt"
)

// ring is the state of one virtqueue as set by the front-end, in any order of messages. reconcile
// updates the Backend accordingly.
//
// The session keeps its own copies of the descriptors and gives the Backend duplicates, because a
// ring may stop and start again (SET_VRING_ENABLE) with the same ones.
type ring struct {
	num               uint16
	base              uint16
	desc, avail, used uint64
	kick, call, err   int // -1: none

	haveAddr bool
	haveKick bool // SET_VRING_KICK was received, with a descriptor or without
	enabled  bool // SET_VRING_ENABLE
	running  bool // the Backend processes it
}

func newRing() ring { return ring{kick: -1, call: -1, err: -1} }

// close clears the state and closes the session's descriptors. The ring must not run.
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

// started reports whether all parameters of the ring have arrived ("Ring states"). The
// specification starts a ring at its first kick. A ring without a kick has nothing to do, so
// starting it at SET_VRING_KICK makes no difference; a front-end that polls never kicks.
func (r *ring) started() bool { return r.num != 0 && r.haveAddr && r.haveKick }

// reconcile starts or stops ring i so that it runs exactly if it should.
func (s *session) reconcile(i int) error {
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

// alwaysEnabled reports whether rings start enabled, as without VHOST_USER_F_PROTOCOL_FEATURES.
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

// stop returns when the ring's last request has completed. The ring counts as stopped even if the
// Backend reports an error.
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

// stopAll stops and disables every ring; the first error is returned after all have been tried.
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

// change applies the values of a message about ring i and reconciles the ring. A running ring stops
// first and continues where it stopped, with the new addresses and kick descriptor. If the new
// state cannot run, the old one is restored and an error is returned.
func (s *session) change(i int, apply func(*ring)) error {
	r := &s.rings[i]
	wasRunning := r.running
	if err := s.stop(i); err != nil {
		return fatal{err}
	}
	old := *r
	apply(r)
	err := s.reconcile(i)
	if err == nil {
		return nil
	}
	*r = old
	if wasRunning {
		if again := s.reconcile(i); again != nil {
			return fatal{errors.Join(err, again)}
		}
	}
	return err
}

// reconcileAll reconciles every ring after a change that concerns all of them. The change cannot be
// undone, so a ring that fails to start ends the session.
func (s *session) reconcileAll() error {
	for i := range s.rings {
		if err := s.reconcile(i); err != nil {
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
