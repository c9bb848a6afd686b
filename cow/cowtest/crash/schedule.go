package crash

import (
	"fmt"
	"math/rand/v2"
	"path"
	"regexp"
	"sort"
	"sync"

	"cowblk/cow/cowtest/faultfs"
)

// schedule decides the order of calls on files by concurrent goroutines: each call waits for its
// turn. So one seed gives one order, and every order is possible.
type schedule struct {
	rng   *rand.Rand
	fault func(n int, c faultfs.Call) faultfs.Fault // of the n-th call, from 1; nil: none

	mu      sync.Mutex
	waiting []*turn
	calls   int
	inject  injection
	random  map[string]int // random parts of names, in the order of their appearance
	free    bool           // no call waits any more
}

type turn struct {
	call  faultfs.Call
	order string // sort key among the waiting calls
	fault faultfs.Fault
	mine  chan struct{}
}

// hook is the faultfs.Hook of the process.
func (s *schedule) hook(c faultfs.Call) faultfs.Fault {
	s.mu.Lock()
	if s.free {
		s.mu.Unlock()
		return faultfs.Fault{}
	}
	if !needsTurn(c) && (s.inject.after == 0 || !s.inject.allCalls) {
		f := s.countCall(c)
		s.mu.Unlock()
		return f
	}
	t := &turn{call: c, mine: make(chan struct{})}
	s.waiting = append(s.waiting, t)
	s.mu.Unlock()
	<-t.mine
	return t.fault
}

// needsTurn reports whether a call waits for its turn.
func needsTurn(c faultfs.Call) bool {
	return c.Changes() || c.Op == "read" && path.Base(c.Name) == "data"
}

// countCall is called with each call just before it happens.
func (s *schedule) countCall(c faultfs.Call) faultfs.Fault {
	s.calls++
	if f := s.inject.fault(c); f.Err != nil {
		return f
	}
	if s.fault == nil {
		return faultfs.Fault{}
	}
	return s.fault(s.calls, c)
}

// next lets one of the waiting calls happen; false: none waits. No other goroutine may be running.
func (s *schedule) next() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		return false
	}
	// Goroutines that ran at the same time have arrived in any order.
	for _, t := range s.waiting {
		if t.order == "" {
			t.order = s.stableText(t.call.String())
		}
	}
	sort.SliceStable(s.waiting,
		func(i, j int) bool { return s.waiting[i].order < s.waiting[j].order })
	i := s.rng.IntN(len(s.waiting))
	t := s.waiting[i]
	s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
	t.fault = s.countCall(t.call)
	close(t.mine)
	return true
}

// randomPart matches a UUID, or the generation of a shared map.
var randomPart = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|-[0-9a-f]{16}`)

// stableText replaces text that differs in every run.
func (s *schedule) stableText(call string) string {
	return randomPart.ReplaceAllStringFunc(call, func(id string) string {
		n, ok := s.random[id]
		if !ok {
			n = len(s.random)
			if s.random == nil {
				s.random = map[string]int{}
			}
			s.random[id] = n
		}
		return fmt.Sprintf("#%04d", n)
	})
}

// release lets all calls happen, waiting and later ones.
func (s *schedule) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = true
	for _, t := range s.waiting {
		close(t.mine)
	}
	s.waiting = nil
}

// released reports whether release was called.
func (s *schedule) released() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free
}
