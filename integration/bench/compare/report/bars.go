package report

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// barPlot shows one quantity of all contenders under one workload, one bar each, in the order of
// measurement.
func (r *Results) barPlot(title, workload string, of func(Sample) float64) (*plot.Plot, vg.Length,
	error) {
	var points []*Point
	for _, p := range r.Points {
		if p.Workload == workload && p.Median(of) > 0 {
			points = append(points, p)
		}
	}
	if len(points) == 0 {
		return nil, 0, nil
	}
	p := newPlot(title, "", "")
	var names []string
	top := 0.0
	values := plotter.XYLabels{}
	for i := range points {
		// The first contender is at the top.
		q := points[len(points)-1-i]
		v := q.Median(of)
		top = max(top, v)
		bar, err := plotter.NewBarChart(plotter.Values{v}, barHeight*0.7)
		if err != nil {
			return nil, 0, err
		}
		bar.Horizontal, bar.XMin, bar.Color, bar.LineStyle.Width = true, float64(i),
			colour(kindOf(q.Contender)), 0
		p.Add(bar)
		// The space allows for the wider letters of a substitute font.
		names = append(names, q.Label+"     ")
		values.XYs = append(values.XYs, plotter.XY{X: v, Y: float64(i)})
		values.Labels = append(values.Labels, " "+number(v))
	}
	labels, err := plotter.NewLabels(values)
	if err != nil {
		return nil, 0, err
	}
	for i := range labels.TextStyle {
		sans(&labels.TextStyle[i], 10)
		labels.TextStyle[i].YAlign = draw.YCenter
	}
	p.Add(labels)
	p.NominalY(names...)
	p.X.Min, p.X.Max = 0, top*1.12
	p.Y.Min, p.Y.Max = -0.6, float64(len(points))-0.4
	return p, barHeight*vg.Length(len(points)) + 2.2*vg.Centimeter, nil
}
