package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// depthPlot shows the effect of depth on each kind of stack.
func (r *Results) depthPlot() (*plot.Plot, vg.Length, error) {
	p := newPlot("Random reads of 4 KiB from the base, by depth of the stack",
		"layers above the base", "thousand requests per second")
	p.Add(gridLines())
	families := []struct {
		label    string
		key      func(int) string
		workload string
		dashes   []vg.Length
		mark     draw.GlyphDrawer // nil: no layers, one value for every depth
	}{
		{"cowblk, QD32", Stack, ReadQD32, nil, draw.CircleGlyph{}},
		{"cowblk, QD1", Stack, ReadQD1, dotted(), draw.SquareGlyph{}},
		{"cowblk pass-through, QD32", func(int) string { return RawRead }, ReadQD32, dashed(), nil},
		{"qemu raw, QD32", func(int) string { return QSDRead }, ReadQD32, dashed(), nil},
		{"qemu qcow2, QD32", Chain, ReadQD32, nil, draw.CircleGlyph{}},
		{"qemu qcow2, QD1", Chain, ReadQD1, dotted(), draw.SquareGlyph{}},
	}
	drawn, top := 0, 0.0
	for _, f := range families {
		var points plotter.XYs
		for _, d := range Depths() {
			if q := r.Point(f.key(d), f.workload); q != nil {
				points = append(points, plotter.XY{X: float64(d), Y: q.Median(iops) / 1e3})
				top = max(top, q.Median(iops)/1e3)
			}
		}
		if len(points) == 0 {
			continue
		}
		if err := line(p, f.label, points, colour(kindOf(f.key(1))), f.dashes, f.mark); err != nil {
			return nil, 0, err
		}
		drawn++
	}
	if drawn == 0 {
		return nil, 0, nil
	}
	p.X.Scale = plot.LogScale{}
	p.X.Min, p.X.Max = 0.9, 140
	var ticks []plot.Tick
	for _, d := range Depths() {
		ticks = append(ticks, plot.Tick{Value: float64(d), Label: fmt.Sprint(d)})
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	// The legend needs the space above the curves.
	p.Y.Min, p.Y.Max = 0, top*1.65
	p.Legend.Top, p.Legend.Left = true, true
	return p, plotHeight, nil
}

// Depths returns the depths of the compared stacks.
func Depths() []int { return []int{1, 8, 32, 128} }

// latencyPlot shows latency distributions as curves over the share of requests. The axis is
// stretched for the slowest requests: each step to the right is ten times rarer.
func (r *Results) latencyPlot(workload string) (*plot.Plot, vg.Length, error) {
	p := newPlot("Latency: "+WorkloadTitle(workload), "share of requests that took no longer", "µs")
	p.Add(gridLines())
	curves := []struct {
		key, label string
		dashes     []vg.Length
	}{
		{Stack(1), "cowblk, depth 1", nil}, {Stack(128), "cowblk, depth 128", dashed()},
		{RawRead, "cowblk pass-through", nil},
		{QSDRead, "qemu raw", nil}, {Chain(1), "qemu qcow2, depth 1", nil},
		{Chain(8), "qemu qcow2, depth 8", dashed()},
	}
	drawn := 0
	low, high := math.Inf(1), 0.0
	for _, c := range curves {
		q := r.Point(c.key, workload)
		if q == nil || len(q.Rounds[0].Curve) == 0 {
			continue
		}
		points := medianCurve(q)
		for _, x := range points {
			low, high = min(low, x.Y), max(high, x.Y)
		}
		if err := line(p, c.label, points, colour(kindOf(c.key)), c.dashes, nil); err != nil {
			return nil, 0, err
		}
		drawn++
	}
	if drawn == 0 {
		return nil, 0, nil
	}
	var ticks []plot.Tick
	for i, s := range []string{"0", "90 %", "99 %", "99.9 %", "99.99 %"} {
		ticks = append(ticks, plot.Tick{Value: float64(i), Label: s})
	}
	p.X.Tick.Marker = plot.ConstantTicks(append(ticks, plot.Tick{Value: rarity(0.5),
		Label: "50 %"}))
	p.X.Min, p.X.Max = 0, rarity(lastQuantile)
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plainTicks{}
	p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(low))),
		math.Pow(10, math.Ceil(math.Log10(high)))
	p.Legend.Top, p.Legend.Left = true, true
	return p, plotHeight, nil
}

// Quantiles of the curves. Below the first there is a single lucky request; beyond the last a short
// round has too few.
const (
	firstQuantile = 0.01
	lastQuantile  = 0.9999
)

// rarity returns the position of a quantile on the axis: 0 for 0, 1 for 0.9, 2 for 0.99.
func rarity(q float64) float64 { return -math.Log10(1 - q) }

// medianCurve returns the median of each quantile over the rounds, in µs.
func medianCurve(p *Point) (points plotter.XYs) {
	for i, c := range p.Rounds[0].Curve {
		if c.Q < firstQuantile || c.Q > lastQuantile {
			continue
		}
		var all []float64
		for _, s := range p.Rounds {
			if i < len(s.Curve) && s.Curve[i].Q == c.Q {
				all = append(all, s.Curve[i].Latency)
			}
		}
		// A logarithmic axis has no 0.
		points = append(points, plotter.XY{X: rarity(c.Q), Y: max(Median(all)/1e3, 0.1)})
	}
	slices.SortFunc(points, func(a, b plotter.XY) int { return int(math.Copysign(1, a.X-b.X)) })
	return points
}

// plainTicks labels powers of ten as numbers, with unlabelled ticks between.
type plainTicks struct{}

func (plainTicks) Ticks(low, high float64) (ticks []plot.Tick) {
	for decade := math.Pow(10, math.Floor(math.Log10(low))); decade <= high*1.001; decade *= 10 {
		ticks = append(ticks, plot.Tick{Value: decade, Label: strconv.FormatFloat(decade, 'f', -1,
			64)})
		for i := 2.0; i < 10 && decade*i < high; i++ {
			ticks = append(ticks, plot.Tick{Value: decade * i})
		}
	}
	return ticks
}
