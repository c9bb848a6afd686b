package load

import (
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is the result of a load on one back-end, or the sum of several.
type Report struct {
	Options Options `json:"options"` // with defaults; of a sum, those of the first
	Sockets int     `json:"sockets"` // 1, or the number of reports in the sum

	Capacity   int64         `json:"capacity"`    // of the disk, bytes
	WriteCache *bool         `json:"write_cache"` // from the configuration space; nil: unknown
	Elapsed    time.Duration `json:"elapsed_ns"`  // time of counting
	Exhausted  bool          `json:"exhausted"`   // FirstWrite: every block was written
	// Interrupted reports that the load ended early.
	Interrupted bool `json:"interrupted,omitempty"`

	Requests uint64 `json:"requests"` // completed reads and writes
	Reads    uint64 `json:"reads"`
	Writes   uint64 `json:"writes"`
	Flushes  uint64 `json:"flushes"`
	Errors   uint64 `json:"errors"` // requests and flushes that failed

	IOPS           float64 `json:"iops"` // Requests per second
	BytesPerSecond float64 `json:"bytes_per_second"`

	Latency      Latency  `json:"latency"`                 // of Requests
	ReadLatency  *Latency `json:"read_latency,omitempty"`  // of a mixed load
	WriteLatency *Latency `json:"write_latency,omitempty"` // of a mixed load
	FlushLatency *Latency `json:"flush_latency,omitempty"`
	// Distribution has about two dozen points of Latency, for a plot.
	Distribution []Quantile `json:"latency_distribution"`

	CPUDriver  float64  `json:"cpu_driver_ns_per_request"`
	CPUBackend *float64 `json:"cpu_backend_ns_per_request"` // nil: unknown, BackendNote says why
	BackendPID int      `json:"backend_pid"`                // 0: unknown, or several
	// BackendNote is a remark about CPUBackend.
	BackendNote string `json:"backend_note,omitempty"`

	tally
	driverTime  time.Duration
	backendTime time.Duration
	shared      bool // another report has the process's CPU time
}

// Latency is a distribution in nanoseconds, with three significant digits, also of Max.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  int64   `json:"p50"`
	P90  int64   `json:"p90"`
	P99  int64   `json:"p99"`
	P999 int64   `json:"p999"`
	Max  int64   `json:"max"`
}

// Quantile says that the fraction Q of all requests, 0 to 1, took at most Latency nanoseconds.
type Quantile struct {
	Q       float64 `json:"q"`
	Latency int64   `json:"ns"`
}

// Bounds of a histogram, in nanoseconds; longer latencies count as the maximum.
const (
	minLatency = 1
	maxLatency = int64(100 * time.Second)
)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(minLatency, maxLatency, 3) }

func latencyOf(h *hdrhistogram.Histogram) Latency {
	return Latency{
		Mean: h.Mean(),
		P50:  h.ValueAtQuantile(50),
		P90:  h.ValueAtQuantile(90),
		P99:  h.ValueAtQuantile(99),
		P999: h.ValueAtQuantile(99.9),
		Max:  h.Max(),
	}
}

// distribution returns the quantiles for a plot with a logarithmic axis of 1-q.
func distribution(h *hdrhistogram.Histogram) []Quantile {
	out := []Quantile{}
	for _, q := range []float64{
		0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98,
		99.99, 99.995, 99.999, 100,
	} {
		out = append(out, Quantile{Q: q / 100, Latency: h.ValueAtQuantile(q)})
	}
	return out
}

// report collects the counts of a target's queues, for finish.
func (t *target) report() *Report {
	r := &Report{
		Options: t.o, Sockets: 1, Capacity: t.f.Capacity(), WriteCache: t.wce,
		Elapsed: t.elapsed(), BackendPID: t.pid, tally: newTally(),
	}
	r.Exhausted = t.o.FirstWrite
	for _, q := range t.queues {
		r.tally.add(&q.tally)
		r.Exhausted = r.Exhausted && q.exhausted
		r.driverTime += q.cpu
		r.backendTime += q.backendCPU
	}
	switch {
	case t.process == nil:
		r.BackendNote = fmt.Sprintf("process %d serves several of these sockets: see the sum",
			t.pid)
		r.shared = true
	case t.process.err != nil:
		r.BackendNote = "unknown: " + t.process.err.Error()
	default:
		r.CPUBackend = new(float64)
	}
	return r
}

// finish computes the values that follow from counts and histograms.
func (r *Report) finish() {
	all := newHistogram()
	all.Merge(r.readHist)
	all.Merge(r.writeHist)
	r.Reads, r.Writes, r.Flushes, r.Errors = r.nReads, r.nWrites, r.nFlushes, r.nErrors
	r.Requests = r.Reads + r.Writes
	r.Latency, r.Distribution = latencyOf(all), distribution(all)
	if r.readHist.TotalCount() > 0 && r.writeHist.TotalCount() > 0 {
		a, b := latencyOf(r.readHist), latencyOf(r.writeHist)
		r.ReadLatency, r.WriteLatency = &a, &b
	}
	if r.flushHist.TotalCount() > 0 {
		l := latencyOf(r.flushHist)
		r.FlushLatency = &l
	}
	if r.Sockets == 1 {
		if s := r.Elapsed.Seconds(); s > 0 {
			r.IOPS = float64(r.Requests) / s
		}
		r.BytesPerSecond = r.IOPS * float64(r.Options.BlockSize)
	}
	if r.Requests > 0 {
		r.CPUDriver = float64(r.driverTime) / float64(r.Requests)
		if r.CPUBackend != nil {
			*r.CPUBackend = float64(r.backendTime) / float64(r.Requests)
		}
	}
}

// sumReports adds finished reports. A process that serves several sockets is counted once.
func sumReports(reports []*Report) *Report {
	sum := &Report{
		Options: reports[0].Options, Sockets: len(reports), WriteCache: reports[0].WriteCache,
		BackendPID: reports[0].BackendPID, Interrupted: reports[0].Interrupted,
		Exhausted: true, CPUBackend: new(float64), tally: newTally(),
	}
	for _, x := range reports {
		sum.IOPS += x.IOPS
		sum.BytesPerSecond += x.BytesPerSecond
		sum.Capacity += x.Capacity
		sum.Elapsed = max(sum.Elapsed, x.Elapsed)
		sum.Exhausted = sum.Exhausted && x.Exhausted
		sum.tally.add(&x.tally)
		sum.driverTime += x.driverTime
		sum.backendTime += x.backendTime
		if x.CPUBackend == nil && !x.shared {
			sum.CPUBackend = nil
		}
		if x.BackendPID != sum.BackendPID {
			sum.BackendPID = 0
		}
		if x.BackendNote != "" && !x.shared {
			sum.BackendNote = x.BackendNote
		}
	}
	sum.finish()
	return sum
}
