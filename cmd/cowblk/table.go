package main

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
)

// columnGap is the number of blanks between two columns.
const columnGap = 2

// minColumn is the minimum width of a shrunk column, in terminal columns.
const minColumn = 8

// columns says how a table fits a narrow terminal, by column indexes.
type columns struct {
	shrink []int // truncated to minColumn at least, the widest first
	drop   []int // then left out, in this order
}

// printTable prints rows in columns; the first row is the heading. Cells are truncated only on a
// terminal.
func (a *app) printTable(rows [][]string, c columns) error {
	widths := columnWidths(rows)
	if width := a.outputWidth(); width > 0 {
		c.fit(widths, width)
	}
	for _, r := range rows {
		var b strings.Builder
		for i, cell := range r {
			if widths[i] < 0 {
				continue
			}
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

// outputWidth returns the width of the terminal on standard output; 0: it is not a terminal.
func (a *app) outputWidth() int {
	if a.width == nil {
		return 0
	}
	return a.width(a.standardOutput())
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

// fit shrinks and drops columns until a line fits width terminal columns. A dropped column has a
// negative width.
func (c columns) fit(widths []int, width int) {
	drop := c.drop
	for lineWidth(widths) > width {
		widest := -1
		for _, i := range c.shrink {
			if widths[i] > minColumn && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		switch {
		case widest >= 0:
			widths[widest]--
		case len(drop) > 0:
			widths[drop[0]], drop = -1, drop[1:]
		default:
			return
		}
	}
}

func lineWidth(widths []int) int {
	total := -columnGap
	for _, w := range widths {
		if w >= 0 {
			total += w + columnGap
		}
	}
	return total
}

// oneLine replaces characters that would break a line or that a terminal would interpret.
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
