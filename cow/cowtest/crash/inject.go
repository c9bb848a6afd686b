package crash

import (
	"errors"
	"strings"
	"syscall"

	"cowblk/cow/cowtest/faultfs"
)

// errInjected is in every error that a step of the script has made a call return.
var errInjected = errors.New("made to fail")

// injected is such an error. The programs see the errno.
type injected struct{ errno syscall.Errno }

func (e *injected) Error() string        { return e.errno.Error() + " (made to fail)" }
func (e *injected) Unwrap() error        { return e.errno }
func (e *injected) Is(target error) bool { return target == errInjected }

// injection is what a script makes fail. All of it is under the schedule's lock.
type injection struct {
	// after counts down to the call that fails once; 0: none does.
	after int
	errno syscall.Errno
	syncs bool // a sync may be the one
	every bool // calls that need no turn count too, and take turns: nobody holds a mutex meanwhile
	fired bool // it has failed
	sync  bool // and was a sync
	only  bool // syncs alone count
	lost  bool // a sync has failed that the process goes on after

	// full counts the calls down that find no space, and where: "store" or "run".
	full  int
	where string
}

// fault is asked about each call just before it happens.
func (i *injection) fault(c faultfs.Call) faultfs.Fault {
	if i.full > 0 && c.Space && (i.where == "run") == strings.HasPrefix(c.Name, faultfs.MemoryDir+"/") {
		i.full--
		return faultfs.Fault{Err: &injected{syscall.ENOSPC}}
	}
	isSync := c.Op == "sync" || c.Op == "sync directory"
	if i.after == 0 || isSync && !i.syncs || i.only && c.Op != "sync" || !i.every && !needsTurn(c) {
		return faultfs.Fault{}
	}
	if i.after--; i.after > 0 {
		return faultfs.Fault{}
	}
	i.fired, i.sync, i.lost = true, isSync, i.lost || i.only
	return faultfs.Fault{Err: &injected{i.errno}}
}

// arm makes the n-th call from now on fail.
func (s *schedule) arm(n int, errno syscall.Errno, syncs, every bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject.after, s.inject.errno, s.inject.syncs, s.inject.every = n, errno, syncs, every
	s.inject.fired, s.inject.sync, s.inject.only = false, false, false
}

// armSync makes the n-th sync of a file from now on fail.
func (s *schedule) armSync(n int) {
	s.arm(n, syscall.EIO, true, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject.only = true
}

// armed reports whether a call of the step under way is to fail, or has.
func (s *schedule) armed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inject.every
}

// disarm reports whether the call has failed, and whether it was a sync.
func (s *schedule) disarm() (fired, sync bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fired, sync = s.inject.fired, s.inject.sync
	s.inject.after, s.inject.fired, s.inject.sync, s.inject.every = 0, false, false, false
	return fired, sync
}

// syncFailed reports whether a sync of this process has failed.
func (s *schedule) syncFailed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inject.sync || s.inject.lost
}

// fill makes the next n calls that need space fail; 0: there is space again.
func (s *schedule) fill(n int, where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject.full, s.inject.where = n, where
}

// filled reports whether there is no space now.
func (s *schedule) filled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inject.full > 0
}
