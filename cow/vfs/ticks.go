package vfs

import (
	"slices"
	"sync"
	"time"
)

// ticks reads a counter of the CPU that grows evenly. Reading it does not wait for earlier
// instructions, as reading the clock does; a wait in the kernel for a page still shows.

// tickRate is the number of ticks in 1,024 ns: the median of three short measurements, one of which
// may have been interrupted.
var tickRate = sync.OnceValue(func() int64 {
	var rates []int64
	for range 3 {
		from, start := ticks(), time.Now()
		for time.Since(start) < 200*time.Microsecond {
		}
		n := int64(ticks() - from)
		rates = append(rates, n*1024/int64(time.Since(start)))
	}
	slices.Sort(rates)
	return max(1, rates[1])
})

// toTicks converts a time of at most some hours to ticks.
func toTicks(d time.Duration) int64 { return int64(d) * tickRate() >> 10 }

// fromTicks converts ticks to a time.
func fromTicks(n int64) time.Duration {
	rate := tickRate()
	return time.Duration(n/rate<<10 + n%rate<<10/rate)
}
