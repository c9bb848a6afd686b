//go:build amd64 || arm64

package vfs

import "unsafe"

// prefetchLines makes the CPU load two cache lines from p on. It ignores an address that is not
// readable or has no page yet.
//
//go:noescape
func prefetchLines(p unsafe.Pointer)

// ticks returns the CPU's counter: see mapping.go.
//
//go:noescape
func ticks() uint64

// Prefetch makes the CPU load the first bytes at off into its cache, if their page is marked
// resident, for a Copy that follows soon. It never faults and never blocks.
func (m *Mapping) Prefetch(off int64) {
	if m.disabledUntil.Load() == 0 && off >= 0 && off < int64(len(m.mem)) && m.pages.has(off, 1) {
		prefetchLines(unsafe.Pointer(&m.mem[off]))
	}
}
