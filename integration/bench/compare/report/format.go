package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// round rounds v to the decimals that the table shows beside limit.
func round(v, limit float64) float64 {
	if math.Abs(limit) >= 100 {
		return math.Round(v*10) / 10
	}
	return math.Round(v*1000) / 1000
}

// number formats v with about three significant digits and separated thousands.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case v == math.Trunc(v) && a < 1000:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case a < 0.01:
		return strconv.FormatFloat(v, 'g', 2, 64)
	case a < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a < 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a < 10e3:
		return fmt.Sprintf("%d,%03d", int(v)/1000, int(a)%1000)
	case a < 100e3:
		return fmt.Sprintf("%.1fk", v/1e3)
	case a < 1e6:
		return fmt.Sprintf("%.0fk", v/1e3)
	}
	return fmt.Sprintf("%.2fM", v/1e6)
}

func unitText(unit string) string {
	if unit == "" || unit == "×" {
		return unit
	}
	return " " + unit
}

// grid is a table; its first row is the heading.
type grid [][]string

// plain formats the table with aligned columns, the first one to the left.
func (g grid) plain() string {
	widths := g.widths()
	var b strings.Builder
	for i, row := range g {
		for c, cell := range row {
			pad := strings.Repeat(" ", widths[c]-width(cell))
			switch {
			case c == 0 || c == len(row)-1 && g.text(c):
				cell += pad
			default:
				cell = pad + cell
			}
			b.WriteString(cell)
			if c < len(row)-1 {
				b.WriteString("  ")
			}
		}
		b.WriteString("\n")
		if i == 0 {
			total := 2 * (len(widths) - 1)
			for _, w := range widths {
				total += w
			}
			b.WriteString(strings.Repeat("─", total) + "\n")
		}
	}
	return b.String()
}

// markdown formats the table as Markdown.
func (g grid) markdown() string {
	var b strings.Builder
	for i, row := range g {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
		if i == 0 {
			b.WriteString("|---|" + strings.Repeat("---:|", max(len(row)-1, 0)) + "\n")
		}
	}
	return b.String()
}

func (g grid) widths() []int {
	var w []int
	for _, row := range g {
		for c, cell := range row {
			if c == len(w) {
				w = append(w, 0)
			}
			w[c] = max(w[c], width(cell))
		}
	}
	return w
}

// text reports whether a column has text rather than numbers.
func (g grid) text(c int) bool {
	return len(g) > 0 && c < len(g[0]) && g[0][c] == detailHeading
}

// width returns the width in characters; every character in the tables takes one column.
func width(s string) int { return len([]rune(s)) }
