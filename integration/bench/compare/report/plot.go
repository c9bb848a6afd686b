package report

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Size of a plot.
const (
	plotWidth  = 18 * vg.Centimeter
	plotHeight = 10.5 * vg.Centimeter
	barHeight  = 0.62 * vg.Centimeter
	margin     = 3 * vg.Millimeter
)

// colour returns a colour. The colours differ in lightness, too: cowblk blue, its pass-through
// light blue, QEMU's orange and brown, references grey.
func colour(kind kind) color.Color {
	switch kind {
	case ours:
		return color.RGBA{R: 0x0b, G: 0x5c, B: 0xad, A: 0xff}
	case passThrough:
		return color.RGBA{R: 0x63, G: 0xb3, B: 0xed, A: 0xff}
	case qcow2:
		return color.RGBA{R: 0xd9, G: 0x5f, B: 0x02, A: 0xff}
	case qemuRaw:
		return color.RGBA{R: 0xf2, G: 0xb1, B: 0x5a, A: 0xff}
	}
	return color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
}

// kind is the kind of a contender, which determines its colour.
type kind int

const (
	other kind = iota
	ours
	passThrough
	qcow2
	qemuRaw
)

func kindOf(contender string) kind {
	switch contender {
	case RawRead, RawWrite, Sparse:
		return passThrough
	case QcowHead, QcowRandom, QcowHalf, FreshQcow2, Chain(1), Chain(8), Chain(32):
		return qcow2
	case QSDRead, QSDWrite, FreshRaw:
		return qemuRaw
	case FreshHead, HeadRandom, HeadHalf, Scattered(8), Scattered(32), StackDirect, Stack(1),
		Stack(8), Stack(32), Stack(128), Head(1), Head(8),
		Head(128):
		return ours
	}
	return other
}

// writePlots draws the plots that have data and returns the names of the files.
func (r *Results) writePlots(dir string) (names []string, err error) {
	all := []struct {
		name string
		draw func() (*plot.Plot, vg.Length, error)
	}{
		{name: "iops-by-depth.svg", draw: r.depthPlot},
		{name: "latency.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.latencyPlot(ReadQD1)
		}},
		{name: "latency-qd32.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.latencyPlot(ReadQD32)
		}},
		{name: "first-write.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.barPlot("First write, 4 KiB, 32 in flight: thousand requests per second",
				FirstQD32, func(s Sample) float64 { return s.IOPS / 1e3 })
		}},
		{name: "overwrite.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.barPlot("Overwrite, 4 KiB, 32 in flight, write cache on: thousand requests per second", WriteQD32, func(s Sample) float64 { return s.IOPS / 1e3 })
		}},
		{name: "owned-read.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.barPlot("Random read of what was written, 4 KiB, 32 in flight: thousand requests per second", OwnedQD32, func(s Sample) float64 { return s.IOPS / 1e3 })
		}},
		{name: "owned-sequential.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.barPlot("Sequential read of what was written, 128 KiB, 8 in flight: MiB/s",
				OwnedSeq, func(s Sample) float64 { return s.Bytes / (1 << 20) })
		}},
		{name: "cpu.svg", draw: func() (*plot.Plot, vg.Length, error) {
			return r.barPlot("CPU time of the server per random read of 4 KiB, 32 in flight: µs",
				ReadQD32, func(s Sample) float64 { return s.Server / 1e3 })
		}},
	}
	for _, a := range all {
		p, height, err := a.draw()
		if err != nil {
			return nil, fmt.Errorf("plot %s: %w", a.name, err)
		}
		if p == nil {
			continue
		}
		if err := save(p, height, filepath.Join(dir, a.name)); err != nil {
			return nil, fmt.Errorf("plot %s: %w", a.name, err)
		}
		names = append(names, a.name)
	}
	return names, nil
}

func save(p *plot.Plot, height vg.Length, path string) error {
	c := vgsvg.New(plotWidth, height)
	// The margin allows for the wider letters of a substitute font.
	p.Draw(draw.Crop(draw.NewCanvas(c, plotWidth, height), margin, -2*margin, margin, -margin))
	var b strings.Builder
	if _, err := c.WriteTo(&b); err != nil {
		return err
	}
	svg := strings.ReplaceAll(b.String(), "font-family:Liberation Sans",
		"font-family:Liberation Sans,Arial,Helvetica,sans-serif")
	return os.WriteFile(path, []byte(svg), 0o644)
}

// newPlot returns an empty plot in sans-serif letters on white.
func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	for _, s := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label,
		&p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		sans(s, 10)
	}
	sans(&p.Title.TextStyle, 12)
	p.Title.Padding = 3 * vg.Millimeter
	p.Legend.ThumbnailWidth = 8 * vg.Millimeter
	p.Legend.Padding = 0.8 * vg.Millimeter
	return p
}

func sans(s *text.Style, size font.Length) {
	s.Font.Variant = "Sans"
	s.Font.Size = size
}

// gridLines returns faint grid lines.
func gridLines() *plotter.Grid {
	g := plotter.NewGrid()
	light := color.RGBA{R: 0xe2, G: 0xe2, B: 0xe2, A: 0xff}
	g.Vertical.Color, g.Horizontal.Color = light, light
	return g
}

// line draws joined points, with these dashes and marks.
func line(p *plot.Plot, label string, points plotter.XYs, c color.Color, dashes []vg.Length,
	mark draw.GlyphDrawer) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color, l.Width, l.Dashes = c, vg.Points(1.6), dashes
	p.Add(l)
	if mark == nil {
		p.Legend.Add(label, l)
		return nil
	}
	s, err := plotter.NewScatter(points)
	if err != nil {
		return err
	}
	s.Color, s.Shape, s.Radius = c, mark, vg.Points(3)
	p.Add(s)
	p.Legend.Add(label, l, s)
	return nil
}

func dashed() []vg.Length { return []vg.Length{vg.Points(5), vg.Points(3)} }

func dotted() []vg.Length { return []vg.Length{vg.Points(1.5), vg.Points(2.5)} }
