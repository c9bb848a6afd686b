//go:build amd64 || arm64

package vfs

import "unsafe"

// prefetchLines has the processor fetch two lines of its cache from p on. An address
// that cannot be read, or has no page yet, is nothing to it.
//
//go:noescape
func prefetchLines(p unsafe.Pointer)

// ticks: see ticks.go.
//
//go:noescape
func ticks() uint64

// Prefetch has the processor fetch the first bytes at off from memory, if their page
// is believed resident, for a Copy that follows soon. It never faults and never
// waits.
func (m *Mapping) Prefetch(off int64) {
	if m.disabledUntil.Load() == 0 && off >= 0 && off < int64(len(m.mem)) && m.pages.has(off, 1) {
		prefetchLines(unsafe.Pointer(&m.mem[off]))
	}
}
