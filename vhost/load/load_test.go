package load

import (
	"context"
	"strconv"
	"testing"
	"time"
)

// What the driver and the null back-end do together, with all that a load
// measures.
func BenchmarkNull(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		b.Run("QD"+strconv.Itoa(depth), func(b *testing.B) {
			var best float64
			for b.Loop() {
				r, err := Run(context.Background(), Options{Null: true, QueueDepth: depth, Poll: true, Duration: time.Second})
				if err != nil {
					b.Fatal(err)
				}
				best = max(best, r.IOPS)
			}
			b.ReportMetric(best, "req/s")
		})
	}
}
