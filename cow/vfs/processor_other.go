//go:build !amd64 && !arm64

package vfs

import "time"

var started = time.Now()

// ticks returns nanoseconds: see mapping.go.
func ticks() uint64 { return uint64(time.Since(started)) }

// Prefetch does nothing: see processor_unsafe.go.
func (m *Mapping) Prefetch(int64) {}
