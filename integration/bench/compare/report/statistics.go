package report

import "slices"

// Median returns the median of v: the mean of the two middle values for an even number, 0 for none.
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

// Spread is a median with the least and the greatest value.
type Spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// SpreadOf returns the spread of v, which must not be empty.
func SpreadOf(v []float64) Spread {
	return Spread{Median: Median(v), Low: slices.Min(v), High: slices.Max(v)}
}

// Ratios divides a quantity of a by that of b, round by round. It omits rounds that a or b lacks,
// or in which b is 0.
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
