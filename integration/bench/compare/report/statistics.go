package report

import "slices"

// Median of v, the mean of the two middle ones for an even number; 0 for none.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}

// Spread is a median and what lies furthest from it on each side.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// SpreadOf returns the spread of v, which is not empty.
func SpreadOf(v []float64) Spread {
	return Spread{Median: Median(v), Low: slices.Min(v), High: slices.Max(v)}
}

// Ratios divides a quantity of a by that of b, round by round. A round that one
// of them lacks, or in which b has 0, is left out.
func Ratios(a, b *Point, of func(Sample) float64) (ratios []float64) {
	if a == nil || b == nil {
		return nil
	}
	for _, x := range a.Rounds {
		for _, y := range b.Rounds {
			if x.Round == y.Round && of(y) != 0 {
				ratios = append(ratios, of(x)/of(y))
			}
		}
	}
	return ratios
}
