package main

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
)

// columnGap is the number of blanks between two columns.
const columnGap = 2

// leastColumn is how narrow a column is made for a narrow terminal, in columns of the terminal.
const leastColumn = 8

// printTable writes rows in columns; the first row is the heading. On a terminal whose lines are too short the columns
// called shrink are cut, the widest first; anywhere else all of each cell is written.
func (a *app) printTable(rows [][]string, shrink ...int) error {
	widths := columnWidths(rows)
	if room := a.outputWidth(); room > 0 {
		fit(widths, shrink, room)
	}
	for _, r := range rows {
		var b strings.Builder
		for i, cell := range r {
			cell = runewidth.Truncate(oneLine(cell), widths[i], "…")
			b.WriteString(cell)
			b.WriteString(strings.Repeat(" ", widths[i]-runewidth.StringWidth(cell)+columnGap))
		}
		if _, err := fmt.Fprintln(a.out, strings.TrimRight(b.String(), " ")); err != nil {
			return outputError(err)
		}
	}
	return nil
}

// outputWidth is that of the terminal on standard output; 0: there is none.
func (a *app) outputWidth() int {
	if a.width == nil {
		return 0
	}
	to := any(a.out)
	if o, ok := a.out.(*output); ok {
		to = o.to
	}
	return a.width(to)
}

func columnWidths(rows [][]string) []int {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], runewidth.StringWidth(oneLine(cell)))
		}
	}
	return widths
}

// fit makes the columns called shrink narrower until a line has room columns, or none can be narrower.
func fit(widths, shrink []int, room int) {
	for {
		total, widest := -columnGap, -1
		for _, w := range widths {
			total += w + columnGap
		}
		for _, i := range shrink {
			if widths[i] > leastColumn && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if total <= room || widest < 0 {
			return
		}
		widths[widest]--
	}
}

// oneLine is text that cannot break a line or a terminal.
func oneLine(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t':
			return ' '
		case !unicode.IsPrint(c):
			return unicode.ReplacementChar
		}
		return c
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}
