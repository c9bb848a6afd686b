package crash

import (
	"errors"
	"strings"
	"syscall"

	"cowblk/cow/cowtest/faultfs"
)

// errInjected matches every error that a step of the script has made a call return.
var errInjected = errors.New("made to fail")

// injected is an injected error. The programs see the errno.
type injected struct{ errno syscall.Errno }

func (e *injected) Error() string        { return e.errno.Error() + " (made to fail)" }
func (e *injected) Unwrap() error        { return e.errno }
func (e *injected) Is(target error) bool { return target == errInjected }

// injection says which calls fail. The schedule's lock guards all of it.
type injection struct {
	// after counts down to the call that fails once; 0: none.
	after        int
	errno        syscall.Errno
	includeSyncs bool // the failing call may be a sync
	// calls that need no turn count too, and take turns: no goroutine holds a mutex then
	allCalls  bool
	fired     bool // the call has failed
	wasSync   bool // and was a sync
	onlySyncs bool // only syncs count
	syncLost  bool // a sync has failed and the process continues

	// full counts down the calls that find no space. where is "store" or "run".
	full  int
	where string
}

// fault is called with each call just before it happens.
func (i *injection) fault(c faultfs.Call) faultfs.Fault {
	if i.full > 0 && c.Space && (i.where == "run") == strings.HasPrefix(c.Name,
		faultfs.MemoryDir+"/") {
		i.full--
		return faultfs.Fault{Err: &injected{syscall.ENOSPC}}
	}
	isSync := c.Op == "sync" || c.Op == "sync directory"
	if i.after == 0 || isSync && !i.includeSyncs || i.onlySyncs && c.Op != "sync" || !i.allCalls &&
		!needsTurn(c) {
		return faultfs.Fault{}
	}
	if i.after--; i.after > 0 {
		return faultfs.Fault{}
	}
	i.fired, i.wasSync, i.syncLost = true, isSync, i.syncLost || i.onlySyncs
	return faultfs.Fault{Err: &injected{i.errno}}
}

// arm makes the n-th call from now on fail.
func (s *schedule) arm(n int, errno syscall.Errno, syncs, every bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject.after, s.inject.errno, s.inject.includeSyncs, s.inject.allCalls = n, errno, syncs,
		every
	s.inject.fired, s.inject.wasSync, s.inject.onlySyncs = false, false, false
}

// armSync makes the n-th sync of a file from now on fail.
func (s *schedule) armSync(n int) {
	s.arm(n, syscall.EIO, true, false)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject.onlySyncs = true
}

// armed reports whether a call of the current step is to fail, or has failed. A sync that armSync
// makes fail may be one of a later step.
func (s *schedule) armed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inject.allCalls || s.inject.onlySyncs && s.inject.fired
}

// disarm reports whether the call has failed, and whether it was a sync.
func (s *schedule) disarm() (fired, sync bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fired, sync = s.inject.fired, s.inject.wasSync
	s.inject.after, s.inject.fired, s.inject.wasSync, s.inject.allCalls = 0, false, false, false
	return fired, sync
}

// syncFailed reports whether a sync of this process has failed.
func (s *schedule) syncFailed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inject.wasSync || s.inject.syncLost
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
