package report

import "fmt"

// ownedTargets returns the targets of reads of what the guest has written, and of blocks that a
// server reads for the first time.
func ownedTargets() []target {
	const mib = 1 << 20
	base := Stack(1)
	all := []target{
		{name: "randread QD32, head written in order against base", bar: 0.85, stretch: 0.95,
			unit: "×", measure: rate(Head(1), base, OwnedQD32)},
		{name: "randread QD1, head written in order against base", bar: 0.85, stretch: 0.95,
			unit: "×", measure: rate(Head(1), base, OwnedQD1)},
		{name: "randread QD32, head written in random order against base", bar: 0.85,
			stretch: 0.95, unit: "×", measure: rate(HeadRandom, base, OwnedQD32)},
		{name: "randread QD1, head written in random order against base", bar: 0.85,
			stretch: 0.95, unit: "×", measure: rate(HeadRandom, base, OwnedQD1)},
	}
	for _, h := range []struct{ key, qcow2, what string }{
		{HeadRandom, QcowRandom, "head written in random order"},
		{HeadHalf, QcowHalf, "half of the blocks in the head"},
	} {
		all = append(all,
			target{name: "sequential read, " + h.what + ", against base", bar: 0.4, stretch: 0.6,
				unit: "×", measure: ratio(h.key, base, OwnedSeq, bytes, "MiB/s", mib)},
			target{name: "sequential read, " + h.what + ", against qcow2 in the same state",
				bar: 1.2, stretch: 1.2, unit: "×",
				measure: ratio(h.key, h.qcow2, OwnedSeq, bytes, "MiB/s", mib)})
	}
	for _, n := range ScatteredDepths() {
		for _, w := range []struct{ key, what string }{
			{OwnedQD32, "randread QD32"}, {OwnedQD1, "randread QD1"}, {OwnedSeq, "sequential read"},
		} {
			all = append(all, target{name: fmt.Sprintf(
				"%s, blocks scattered over %d layers against half in the head", w.what, n),
				bar: 0.8, stretch: 0.9, unit: "×", measure: rate(Scattered(n), HeadHalf, w.key)})
		}
	}
	return append(all,
		target{name: "first read of each block after the start, QD32, against raw by qemu-storage-daemon",
			bar: 2, stretch: 3, unit: "×", measure: rate(FreshHead, FreshRaw, FirstTouch)},
		target{name: "p99 of randread QD1, depth 1", bar: 3, stretch: 3, less: true, unit: "µs",
			measure: readTail},
		target{name: "write, then read back, QD1, against both alone", bar: 0.8, stretch: 0.9,
			unit: "×", measure: writeThenRead})
}

// readTail is the 99th percentile of the latencies of random reads in µs.
func readTail(r *Results) measured {
	p := r.Point(Stack(1), ReadQD1)
	if p == nil {
		return r.missing(Stack(1))
	}
	return measured{
		values: values(p, func(s Sample) float64 { return s.Latency.P99 / 1e3 }),
		detail: fmt.Sprintf("median %s µs", number(p.Median(func(s Sample) float64 {
			return s.Latency.P50
		})/1e3)),
	}
}

// writeThenRead compares pairs of a write and a read with the rate that follows from the times of
// overwrites and reads of the same disk in the same round.
func writeThenRead(r *Results) measured {
	pairs, alone := r.Point(Head(1), WriteThenRead), pairsAlone(r.Point(Head(1), WriteQD1),
		r.Point(Head(1), OwnedQD1))
	if pairs == nil || alone == nil {
		return r.missing(Head(1))
	}
	return measured{
		values: Ratios(pairs, alone, iops),
		detail: fmt.Sprintf("%s / %s pairs/s", number(pairs.Median(iops)),
			number(alone.Median(iops))),
	}
}

// pairsAlone returns the rate of pairs if each request takes as long as alone, for the rounds that
// both have.
func pairsAlone(write, read *Point) *Point {
	if write == nil || read == nil {
		return nil
	}
	alone := &Point{}
	for _, w := range write.Rounds {
		for _, x := range read.Rounds {
			if w.Round == x.Round && w.IOPS != 0 && x.IOPS != 0 {
				alone.Rounds = append(alone.Rounds, Sample{Round: w.Round,
					IOPS: 1 / (1/w.IOPS + 1/x.IOPS)})
			}
		}
	}
	return alone
}
