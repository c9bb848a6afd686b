package faultfs

import (
	"slices"
	"sync"

	"cowblk/cow/vfs"
)

// Kill says when a KillFS kills its user.
type Kill struct {
	// At is the change to be killed at, counted from 1; 0: never.
	At int
	// Begin says whether counting begins with a change; nil: with the first.
	Begin func(Call) bool
	// OnKill is called instead of the change; nil: nothing is. It need not return.
	OnKill func(Call)
}

// KillFS is an FS that simulates the kill of a process at its n-th change: that change and all
// later calls fail with ErrDead and do not happen, whichever goroutine makes them. Repeating
// something with n from 1 up kills it at every point.
//
// Everything written before the kill stays, synced or not: the page cache outlives a process. Syncs
// are counted and not performed.
type KillFS struct {
	*FS
	kill Kill

	mu      sync.Mutex
	begun   bool
	killed  bool
	counted []Call
}

// NewKillFS returns fsys with a kill.
func NewKillFS(fsys vfs.FS, k Kill) *KillFS {
	m := &KillFS{kill: k}
	m.FS = Over(fsys, m.see)
	return m
}

// Killed reports whether the kill has happened.
func (m *KillFS) Killed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.killed
}

// Changes returns the changes counted so far.
func (m *KillFS) Changes() []Call {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.counted)
}

// see is the hook.
func (m *KillFS) see(c Call) Fault {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.killed && c.Changes() {
		m.begun = m.begun || m.kill.Begin == nil || m.kill.Begin(c)
		if m.begun {
			m.counted = append(m.counted, c)
			m.killed = len(m.counted) == m.kill.At
		}
		if m.killed && m.kill.OnKill != nil {
			m.kill.OnKill(c)
		}
	}
	if m.killed {
		return Fault{Err: ErrDead}
	}
	return Fault{Skip: c.IsSync()}
}
