package reopen

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// table is a Markdown table.
type table struct{ lines []string }

func newTable(heading ...string) *table {
	t := &table{}
	t.row(heading...)
	t.lines = append(t.lines, "|---"+strings.Repeat("|--:", len(heading)-1)+"|")
	return t
}

func (t *table) row(cells ...string) {
	t.lines = append(t.lines, "| "+strings.Join(cells, " | ")+" |")
}

func (t *table) String() string { return strings.Join(t.lines, "\n") + "\n" }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// ratios returns after/before, pair by pair.
func ratios(before, after []float64) []float64 {
	all := make([]float64, len(before))
	for i := range before {
		all[i] = after[i] / before[i]
	}
	return all
}

// spread formats the median, the least and the greatest value.
func spread(v []float64) string {
	return fmt.Sprintf("%s (%s to %s)", number(median(v)), number(slices.Min(v)),
		number(slices.Max(v)))
}

// number formats x with three digits, or two if it is small.
func number(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x < 0.1 && x > -0.1:
		return strconv.FormatFloat(x, 'g', 2, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// mib formats a number of bytes in MiB.
func mib(bytes int64) string { return number(float64(bytes) / (1 << 20)) }

func sizeText(bytes int64) string {
	if bytes >= tib {
		return fmt.Sprintf("%d TiB", bytes/tib)
	}
	return fmt.Sprintf("%d GiB", bytes/gib)
}

// loadNow returns the load average of the last minute.
func loadNow() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
