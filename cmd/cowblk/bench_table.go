package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"cowblk/vhost/load"
)

// printBench prints a heading, a table with one row for each socket and one for the sum, and
// remarks.
func (a *app) printBench(reports []*load.Report, sum *load.Report) error {
	a.printf("%s", benchHeading(sum))
	rows := [][]string{{"", "IOPS", "MiB/s", "MEAN", "P50", "P99", "P99.9", "MAX", "CPU DRIVER",
		"CPU BACK-END", "ERRORS"}}
	for _, r := range reports {
		name := r.Options.Socket
		if r.Options.Null {
			name = "null"
		}
		rows = appendBench(rows, name, r)
	}
	if len(reports) > 1 {
		rows = appendBench(rows, "all", sum)
	}
	if err := a.printTable(rows, columns{}); err != nil {
		return err
	}
	for _, remark := range benchRemarks(reports, sum) {
		a.printf("%s", remark)
	}
	return nil
}

// benchHeading returns for example "randread 4.0 KiB, 32 in flight, 1 queue, polling, 5s".
func benchHeading(r *load.Report) string {
	o := r.Options
	rw := o.RW
	if o.RW == load.RandRW {
		rw += fmt.Sprintf(" %d/%d", o.ReadPercent, 100-o.ReadPercent)
	}
	if o.FirstWrite {
		rw += " first writes"
	}
	parts := []string{rw + " " + bytesText(int64(o.BlockSize)), fmt.Sprintf("%d in flight",
		o.QueueDepth), countText(int64(o.Queues), "queue")}
	if o.Poll {
		parts = append(parts, "polling")
	} else {
		parts = append(parts, "blocking")
	}
	if o.FsyncEvery > 0 {
		parts = append(parts, "a flush every "+countText(int64(o.FsyncEvery), "write"))
	}
	if r.WriteCache != nil {
		parts = append(parts, "write cache "+onOff(*r.WriteCache))
	}
	return strings.Join(append(parts, r.Elapsed.Round(10*time.Millisecond).String()), ", ")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func appendBench(rows [][]string, name string, r *load.Report) [][]string {
	backend := "unknown"
	if r.CPUBackend != nil {
		backend = nanosText(*r.CPUBackend)
	}
	row := append([]string{name, humanize.Comma(int64(r.IOPS)),
		humanize.CommafWithDigits(r.BytesPerSecond/(1<<20), 1)}, latencyCells(&r.Latency)...)
	rows = append(rows, append(row, nanosText(r.CPUDriver), backend,
		humanize.Comma(int64(r.Errors))))
	for _, part := range []struct {
		name  string
		count uint64
		l     *load.Latency
	}{{"reads", r.Reads, r.ReadLatency}, {"writes", r.Writes, r.WriteLatency},
		{"flushes", r.Flushes, r.FlushLatency}} {
		if part.l == nil {
			continue
		}
		perSecond := r.IOPS * float64(part.count) / float64(max(r.Requests, 1))
		rows = append(rows, append([]string{"  " + part.name, humanize.Comma(int64(perSecond)), ""},
			latencyCells(part.l)...))
	}
	return rows
}

func latencyCells(l *load.Latency) []string {
	cells := []string{nanosText(l.Mean)}
	for _, v := range []int64{l.P50, l.P99, l.P999, l.Max} {
		cells = append(cells, nanosText(float64(v)))
	}
	return cells
}

// nanosText formats a time with three digits: 512 ns, 2.14 µs, 31.0 ms, 1.20 s.
func nanosText(ns float64) string {
	unit := "ns"
	for _, u := range []string{"µs", "ms", "s"} {
		if ns < 999.5 {
			break
		}
		ns, unit = ns/1000, u
	}
	digits := 2
	switch {
	case unit == "ns" || ns >= 99.95:
		digits = 0
	case ns >= 9.995:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, ns, unit)
}

// benchRemarks returns the lines under the table.
func benchRemarks(reports []*load.Report, sum *load.Report) (lines []string) {
	for _, r := range reports {
		if r.BackendNote == "" {
			continue
		}
		line := "CPU back-end"
		if len(reports) > 1 {
			line += " of " + r.Options.Socket
		}
		lines = append(lines, line+": "+r.BackendNote)
	}
	if sum.Options.FirstWrite && !sum.Exhausted {
		lines = append(lines, "not every block was written in this time")
	}
	if sum.Interrupted {
		lines = append(lines, "ended early")
	}
	if sum.Errors > 0 {
		lines = append(lines, countText(int64(sum.Errors), "request")+
			" failed: the back-end's log says why")
	}
	return lines
}
