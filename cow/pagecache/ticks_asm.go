//go:build amd64 || arm64

package pagecache

// ticks returns the CPU's counter: see tickRate.
//
//go:noescape
func ticks() uint64
