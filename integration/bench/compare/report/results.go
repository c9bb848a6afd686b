package report

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// Results holds everything that one run measured.
type Results struct {
	Machine  Machine   `json:"machine"`
	Settings Settings  `json:"settings"`
	Points   []*Point  `json:"points"`
	Singles  []*Single `json:"singles"`
	// Missing gives the reason why a contender has no samples, by its key.
	Missing map[string]string `json:"missing,omitempty"`
	Targets []Verdict         `json:"targets"`
	Notes   []string          `json:"notes,omitempty"`
}

// Settings describes how the samples were taken.
type Settings struct {
	Size   int64         `json:"size"`    // range of the reads, in bytes
	Area   int64         `json:"area"`    // range of the writes, in bytes
	Time   time.Duration `json:"time_ns"` // duration of one sample
	Rounds int           `json:"rounds"`
}

// Sample is one contender under one workload in one round.
type Sample struct {
	Round    int       `json:"round"`
	Requests uint64    `json:"requests"`
	IOPS     float64   `json:"iops"`
	Bytes    float64   `json:"bytes_per_second"`
	Latency  Latencies `json:"latency_ns"`
	// CPU time per request in nanoseconds, of the server process and of the client process. A
	// polling client uses all of one CPU. 0: unknown.
	Server float64 `json:"cpu_server_ns"`
	Driver float64 `json:"cpu_driver_ns"`
	// Curve is the distribution of the latencies, for a plot.
	Curve []Quantile `json:"curve,omitempty"`
}

// Quantile reports that the share Q of all requests, 0 to 1, took at most Latency nanoseconds.
type Quantile struct {
	Q       float64 `json:"q"`
	Latency float64 `json:"ns"`
}

// Latencies holds the latencies of a sample in nanoseconds.
type Latencies struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// Point is a contender under a workload, over all rounds.
type Point struct {
	Contender string   `json:"contender"`
	Label     string   `json:"label"` // of the contender, for display
	Workload  string   `json:"workload"`
	Rounds    []Sample `json:"rounds"`
}

// Single is a figure that is measured once and is not a rate.
type Single struct {
	Key   string  `json:"key"`
	Label string  `json:"label"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Add appends a sample.
func (r *Results) Add(contender, label, workload string, s Sample) {
	p := r.Point(contender, workload)
	if p == nil {
		p = &Point{Contender: contender, Label: label, Workload: workload}
		r.Points = append(r.Points, p)
	}
	p.Rounds = append(p.Rounds, s)
}

// AddSingle records a figure.
func (r *Results) AddSingle(key, label string, value float64, unit string) {
	r.Singles = append(r.Singles, &Single{Key: key, Label: label, Value: value, Unit: unit})
}

// Point returns the point, or nil if it was not measured.
func (r *Results) Point(contender, workload string) *Point {
	for _, p := range r.Points {
		if p.Contender == contender && p.Workload == workload {
			return p
		}
	}
	return nil
}

// Single returns the figure, or nil if it was not measured.
func (r *Results) Single(key string) *Single {
	for _, s := range r.Singles {
		if s.Key == key {
			return s
		}
	}
	return nil
}

// Median returns the median of one quantity over the rounds, 0 without rounds.
func (p *Point) Median(of func(Sample) float64) float64 {
	if p == nil {
		return 0
	}
	var all []float64
	for _, s := range p.Rounds {
		all = append(all, of(s))
	}
	return Median(all)
}

// Write creates dir and writes results.json, results.md and the plots to it.
func (r *Results) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.Marshal(r) // with line breaks it would be megabytes
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(text, '\n'),
		0o644); err != nil {
		return err
	}
	plots, err := r.writePlots(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.Markdown(plots)), 0o644)
}
