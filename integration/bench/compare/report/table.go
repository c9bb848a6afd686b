package report

import (
	"fmt"
	"strings"
	"time"
)

// detailHeading is the heading of the text column in the table of targets.
const detailHeading = "from"

// targetGrid returns the table of targets.
func (r *Results) targetGrid() grid {
	g := grid{{"target", "bar", "stretch", "measured", "lowest to highest", "", detailHeading}}
	for _, v := range r.Targets {
		value, spread := "", ""
		if v.Value != nil {
			value = number(v.Value.Median) + unitText(v.Unit)
			if v.Value.Low != v.Value.High {
				spread = number(v.Value.Low) + " to " + number(v.Value.High)
			}
		}
		g = append(g, []string{v.Name, v.Bar, v.Stretch, value, spread, v.Result, v.Detail})
	}
	return g
}

// workloadGrid returns the table of all contenders under one workload, or nil without contenders.
func (r *Results) workloadGrid(workload string) grid {
	var points []*Point
	best := 0.0
	for _, p := range r.Points {
		if p.Workload == workload {
			points = append(points, p)
			best = max(best, p.Median(iops))
		}
	}
	if len(points) == 0 {
		return nil
	}
	g := grid{{WorkloadTitle(workload), "IOPS", "of best", "MiB/s", "p50 µs", "p99", "p99.9", "max",
		"CPU µs/req", "lowest to highest IOPS"}}
	for _, p := range points {
		us := func(of func(Sample) float64) string { return number(p.Median(of) / 1e3) }
		cpu := us(func(s Sample) float64 { return s.Server })
		if cpu == "0" {
			cpu = ""
		}
		s := SpreadOf(values(p, iops))
		g = append(g, []string{
			p.Label, number(p.Median(iops)), fmt.Sprintf("%.2f", p.Median(iops)/best),
			number(p.Median(bytes) / (1 << 20)),
			us(func(s Sample) float64 { return s.Latency.P50 }), us(p99),
			us(func(s Sample) float64 { return s.Latency.P999 }),
			us(func(s Sample) float64 { return s.Latency.Max }),
			cpu, number(s.Low) + " to " + number(s.High),
		})
	}
	return g
}

func values(p *Point, of func(Sample) float64) (v []float64) {
	for _, s := range p.Rounds {
		v = append(v, of(s))
	}
	return v
}

func (r *Results) singleGrid() grid {
	g := grid{{"measured once", "value"}}
	for _, s := range r.Singles {
		g = append(g, []string{s.Label, number(s.Value) + unitText(s.Unit)})
	}
	return g
}

// Method returns one sentence on how the samples were taken.
func (r *Results) Method() string {
	s := r.Settings
	return fmt.Sprintf("Medians of %d rounds of %s each, contenders in turn; one queue, driver polling, reads in %d MiB and writes in an area of %d MiB of the page cache unless noted otherwise; CPU is the server's.",
		s.Rounds, s.Time.Round(time.Millisecond), s.Size>>20, s.Area>>20)
}

// Text formats the results for a terminal: samples first, verdicts last.
func (r *Results) Text() string {
	var b strings.Builder
	for _, w := range workloads {
		if g := r.workloadGrid(w.key); g != nil {
			b.WriteString(g.plain() + "\n")
		}
	}
	if len(r.Singles) > 0 {
		b.WriteString(r.singleGrid().plain() + "\n")
	}
	b.WriteString(r.targetGrid().plain())
	fmt.Fprintf(&b, "\n%s\n%s\n", r.Method(), r.Machine)
	for _, n := range r.Notes {
		b.WriteString(n + "\n")
	}
	return b.String()
}

// Markdown formats the same with the plots: verdicts first.
func (r *Results) Markdown(plots []string) string {
	var b strings.Builder
	b.WriteString("# cowblk beside others on one machine\n\n")
	fmt.Fprintf(&b, "%s\n\n%s\n", r.Machine, r.Method())
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	fmt.Fprintf(&b, "\n## Targets\n\nThe ratio is taken in every round; the median counts.\n\n%s\n",
		r.targetGrid().markdown())
	for _, p := range plots {
		fmt.Fprintf(&b, "![%s](%s)\n\n", strings.TrimSuffix(p, ".svg"), p)
	}
	b.WriteString("## All measurements\n")
	for _, w := range workloads {
		if g := r.workloadGrid(w.key); g != nil {
			b.WriteString("\n" + g.markdown())
		}
	}
	if len(r.Singles) > 0 {
		b.WriteString("\n" + r.singleGrid().markdown())
	}
	return b.String()
}
