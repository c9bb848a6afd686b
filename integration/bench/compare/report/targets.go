package report

import (
	"fmt"
	"slices"
)

// Verdict is the result of one target.
type Verdict struct {
	Name    string  `json:"name"`
	Bar     string  `json:"bar"`
	Stretch string  `json:"stretch"`
	Result  string  `json:"result"` // stretch, pass, MISS, or not measured
	Value   *Spread `json:"value,omitempty"`
	Unit    string  `json:"unit"`
	// Detail describes the inputs of the value, or the reason why there is none.
	Detail string `json:"detail"`
}

// Results of a target.
const (
	Stretched = "stretch"
	Passed    = "pass"
	Missed    = "MISS"
	Unknown   = "not measured"
)

// target is a row of the table of targets.
type target struct {
	name         string
	bar, stretch float64
	less         bool   // smaller is better
	unit         string // "×" for ratios
	strict       bool   // a value equal to the bar is a miss
	measure      func(*Results) measured
}

// measured is the value of a target. Without values detail gives the reason.
type measured struct {
	values []float64
	detail string
}

func iops(s Sample) float64  { return s.IOPS }
func bytes(s Sample) float64 { return s.Bytes }
func p99(s Sample) float64   { return s.Latency.P99 }

// Judge computes the verdicts on all targets.
func (r *Results) Judge() {
	r.Targets = nil
	for _, t := range targets() {
		r.Targets = append(r.Targets, t.judge(r))
	}
}

func (t target) judge(r *Results) Verdict {
	m := t.measure(r)
	v := Verdict{Name: t.name, Unit: t.unit, Detail: m.detail, Bar: t.limit(t.bar),
		Stretch: t.limit(t.stretch), Result: Unknown}
	if len(m.values) == 0 {
		return v
	}
	s := SpreadOf(m.values)
	v.Value = &s
	switch {
	case t.reaches(s.Median, t.stretch):
		v.Result = Stretched
	case t.reaches(s.Median, t.bar) && !(t.strict && s.Median == t.bar):
		v.Result = Passed
	default:
		v.Result = Missed
	}
	return v
}

// reaches compares values as rounded in the table, so that table and verdict agree.
func (t target) reaches(v, limit float64) bool {
	if t.less {
		return round(v, limit) <= limit
	}
	return round(v, limit) >= limit
}

func (t target) limit(v float64) string {
	sign := "≥"
	if t.less {
		sign = "≤"
		if t.strict {
			sign = "<"
		}
	}
	if v == 0 {
		sign = ""
	}
	return fmt.Sprintf("%s %s%s", sign, number(v), unitText(t.unit))
}

// missing gives the reason why a contender or figure was not measured.
func (r *Results) missing(key string) measured {
	if why := r.Missing[key]; why != "" {
		return measured{detail: why}
	}
	return measured{detail: "not part of this run"}
}

// ratio compares one contender with another under one workload.
func ratio(a, b, workload string, of func(Sample) float64, quantity string,
	scale float64) func(*Results) measured {
	return func(r *Results) measured {
		for _, k := range []string{a, b} {
			if r.Point(k, workload) == nil {
				m := r.missing(k)
				m.detail = k + ": " + m.detail
				return m
			}
		}
		pa, pb := r.Point(a, workload), r.Point(b, workload)
		return measured{
			values: Ratios(pa, pb, of),
			detail: fmt.Sprintf("%s / %s %s", number(pa.Median(of)/scale),
				number(pb.Median(of)/scale), quantity),
		}
	}
}

func rate(a, b, workload string) func(*Results) measured {
	return ratio(a, b, workload, iops, "IOPS", 1)
}

func single(key string, scale float64) func(*Results) measured {
	return func(r *Results) measured {
		s := r.Single(key)
		if s == nil {
			return r.missing(key)
		}
		return measured{values: []float64{s.Value / scale}}
	}
}

// hot compares the 99th percentile of hot reads with and without concurrent misses.
func hot(r *Results) measured {
	a, b := r.Point(SlowStack, HotWithCold), r.Point(SlowStack, HotAlone)
	if a == nil || b == nil {
		return r.missing(SlowStack)
	}
	return measured{
		values: Ratios(a, b, p99),
		detail: fmt.Sprintf("p99 %s / %s µs", number(a.Median(p99)/1e3), number(b.Median(p99)/1e3)),
	}
}

func targets() []target { return append(generalTargets(), ownedTargets()...) }

func generalTargets() []target {
	const mib = 1 << 20
	return []target{
		{name: "randread QD32, depth 8, against qcow2 chain of 8", bar: 5, stretch: 8, unit: "×",
			measure: rate(Stack(8), Chain(8), ReadQD32)},
		{name: "randread QD1, depth 8, against qcow2 chain of 8", bar: 5, stretch: 10, unit: "×",
			measure: rate(Stack(8), Chain(8), ReadQD1)},
		{name: "randread QD32, depth 32 against depth 1", bar: 0.97, stretch: 1, unit: "×",
			measure: rate(Stack(32), Stack(1), ReadQD32)},
		{name: "randread QD32, depth 128 against depth 1", bar: 0.97, stretch: 1, unit: "×",
			measure: rate(Stack(128), Stack(1), ReadQD32)},
		{name: "randread QD1, depth 32 against depth 1", bar: 0.97, stretch: 1, unit: "×",
			measure: rate(Stack(32), Stack(1), ReadQD1)},
		{name: "randread QD1, depth 128 against depth 1", bar: 0.97, stretch: 1, unit: "×",
			measure: rate(Stack(128), Stack(1), ReadQD1)},
		{name: "randread QD32, depth 8 against pass-through of the base", bar: 0.95, stretch: 0.99,
			unit: "×", measure: rate(Stack(8), RawRead, ReadQD32)},
		{name: "randread QD1, depth 8 against pass-through of the base", bar: 0.95, stretch: 0.99,
			unit: "×", measure: rate(Stack(8), RawRead, ReadQD1)},
		{name: "overwrite QD32, depth 8 against pass-through of a plain file", bar: 0.95,
			stretch: 0.99, unit: "×", measure: rate(Head(8), RawWrite, WriteQD32)},
		{name: "overwrite QD1, depth 8 against pass-through of a plain file", bar: 0.95,
			stretch: 0.99, unit: "×", measure: rate(Head(8), RawWrite, WriteQD1)},
		{name: "first write QD32 against first write into a sparse file", bar: 0.85, stretch: 0.95,
			unit: "×", measure: rate(FreshHead, Sparse, FirstQD32)},
		{name: "first write QD1 against first write into a sparse file", bar: 0.85, stretch: 0.95,
			unit: "×", measure: rate(FreshHead, Sparse, FirstQD1)},
		{name: "first write QD32 against qcow2", bar: 5, stretch: 10, unit: "×",
			measure: rate(FreshHead, FreshQcow2, FirstQD32)},
		{name: "first write QD1 against qcow2", bar: 5, stretch: 10, unit: "×",
			measure: rate(FreshHead, FreshQcow2, FirstQD1)},
		{name: "overwrite QD32, depth 1, against qcow2", bar: 3, stretch: 5, unit: "×",
			measure: rate(Head(1), QcowHead, WriteQD32)},
		{name: "overwrite + flush each, depth 8, against raw by qemu-storage-daemon", bar: 1,
			stretch: 1.3, unit: "×", measure: rate(Head(8), QSDWrite, WriteFlush)},
		{name: "sequential read 128 KiB QD8, depth 8, against memcpy", bar: 0.6, stretch: 0.85,
			unit: "×", measure: ratio(Stack(8), Memcpy, SeqRead, bytes, "MiB/s", mib)},
		{name: "cold read O_DIRECT QD32, depth 8, against fio io_uring", bar: 0.9, stretch: 1,
			unit: "×", measure: rate(StackDirect, FioDirect, ColdQD32)},
		{name: "p99 of hot reads beside misses, against no misses", bar: 2, stretch: 1.2,
			less: true, unit: "×", measure: hot},
		{name: "idle daemon, 100 connected disks", bar: 0.5, stretch: 0, less: true, strict: true,
			unit: "% CPU", measure: single(IdleCPU, 1)},
		{name: "index of 1 TiB, 32 layers, 5 % scattered", bar: 256, stretch: 256, less: true,
			unit: "MiB", measure: single(IndexWorst, mib)},
		{name: "index of 1 TiB, 32 layers of large files", bar: 256, stretch: 8, less: true,
			unit: "MiB", measure: single(IndexFiles, mib)},
		{name: "index of a fresh clone of a 50 GB image", bar: 1, stretch: 1, less: true,
			strict: true, unit: "MiB", measure: single(IndexClone, mib)},
		{name: "opening 1 TiB × 32 layers, 5 % scattered", bar: 3, stretch: 1, less: true,
			unit: "s", measure: single(OpenTime, 1)},
		{name: "opening 1 TiB × 32 layers, 5 % in large files", bar: 3, stretch: 1, less: true,
			unit: "s", measure: single(OpenFileTime, 1)},
	}
}

// Misses returns the targets that were measured and missed.
func (r *Results) Misses() []Verdict {
	return slices.DeleteFunc(slices.Clone(r.Targets), func(v Verdict) bool {
		return v.Result != Missed
	})
}
