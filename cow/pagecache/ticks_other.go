//go:build !amd64 && !arm64

package pagecache

import "time"

var started = time.Now()

// ticks returns nanoseconds: see tickRate.
func ticks() uint64 { return uint64(time.Since(started)) }
