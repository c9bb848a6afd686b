//go:build !amd64 && !arm64

package vfs

// Prefetch does nothing here: see prefetch_unsafe.go.
func (m *Mapping) Prefetch(int64) {}
