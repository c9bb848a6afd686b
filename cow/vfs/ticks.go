package vfs

import (
	"slices"
	"sync"
	"time"
)

// ticks is a counter of the processor that grows evenly. To read it does not wait
// for what was begun before, as a look at the clock does; but whoever had to wait
// in the kernel meanwhile, for a page, sees that.

// tickRate is the number of ticks in 1,024 ns. It is the median of three short
// measurements: one of them may have been interrupted.
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

// toTicks is the number of ticks in a time of at most some hours.
func toTicks(d time.Duration) int64 { return int64(d) * tickRate() >> 10 }

// fromTicks is the time that so many ticks take.
func fromTicks(n int64) time.Duration {
	rate := tickRate()
	return time.Duration(n/rate<<10 + n%rate<<10/rate)
}
