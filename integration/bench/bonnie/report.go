package bonnie

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"

	machine "cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
)

// report is the JSON document.
type report struct {
	Machine  machine.Machine `json:"machine"`
	Limit    string          `json:"limit"` // caveats for the reader
	FileMiB  int             `json:"file-mib"`
	Memory   int             `json:"guest-memory-mib"`
	Files    int             `json:"files"`
	LayerMiB int             `json:"layer-mib"`
	Results  []*result       `json:"results"`
}

// result is the result of one contender.
type result struct {
	contender
	Runs     []measures `json:"runs"`
	Median   measures   `json:"median"`
	SlowDown measures   `json:"slow-down"` // median over the rounds of the first contender's rate divided by this one's
}

const limit = "The guest's processor is emulated (TCG) and limits many of the rates: compare ratios."

func newReport(s *settings) *report {
	r := &report{Machine: machine.Describe(s.dir, harness.InstalledQEMU, ""), Limit: limit,
		FileMiB: s.fileMiB, Memory: s.fileMiB / 2, Files: s.files << 10, LayerMiB: layerMiB}
	for _, c := range contenders {
		r.Results = append(r.Results, &result{contender: c})
	}
	return r
}

func (r *report) add(c contender, v measures) {
	for _, x := range r.Results {
		if x.Name == c.Name {
			x.Runs = append(x.Runs, v)
		}
	}
}

// summarize computes medians and slow-downs.
func (r *report) summarize() {
	for _, x := range r.Results {
		x.Median, x.SlowDown = measures{}, measures{}
		for _, c := range columns {
			var rates, ratios []float64
			for round, run := range x.Runs {
				rate, ok := run[c.Name]
				if !ok {
					continue
				}
				rates = append(rates, rate)
				if reference, ok := r.Results[0].Runs[round][c.Name]; ok {
					ratios = append(ratios, reference/rate)
				}
			}
			if len(rates) > 0 {
				x.Median[c.Name] = machine.Median(rates)
			}
			if len(ratios) > 0 {
				x.SlowDown[c.Name] = math.Round(machine.Median(ratios)*1000) / 1000
			}
		}
	}
}

// table formats the report as text.
func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# bonnie++ in a guest\n\n%s.\n\n%s\n%s\n\n", r.Machine, r.Limit,
		r.Machine.Busy())
	fmt.Fprintf(&b, "A file of %d MiB, %d MiB of memory, %d small files; each layer below the writable one holds %d MiB; medians of %d runs.\n\n",
		r.FileMiB, r.Memory, r.Files, r.LayerMiB, len(r.Results[0].Runs))
	fmt.Fprintf(&b, "Slow-down relative to %s in the same round (below 1: faster):\n\n",
		r.Results[0].Name)
	r.rows(&b, "", func(x *result) measures { return x.SlowDown }, "%.2f")
	b.WriteString("\nRates:\n\n")
	r.rows(&b, "unit", func(x *result) measures { return x.Median }, "%.0f")
	return b.String()
}

func (r *report) rows(b *strings.Builder, unit string, values func(*result) measures,
	format string) {
	head, line := "| |", "|---|"
	if unit != "" {
		head, line = head+" "+unit+" |", line+"---|"
	}
	for _, x := range r.Results {
		head, line = head+" "+x.Name+" |", line+"--:|"
	}
	b.WriteString(head + "\n" + line + "\n")
	for _, c := range columns {
		b.WriteString("| " + c.Name + " |")
		if unit != "" {
			b.WriteString(" " + c.Unit + " |")
		}
		for _, x := range r.Results {
			if v, ok := values(x)[c.Name]; ok {
				fmt.Fprintf(b, " "+format+" |", v)
			} else {
				b.WriteString(" too fast to tell |")
			}
		}
		b.WriteString("\n")
	}
}

func (r *report) write(s *settings) error {
	r.Machine.LoadAfter = machine.Load()
	r.summarize()
	text := r.table()
	fmt.Print(text)
	if s.markdown != "" {
		if err := os.WriteFile(s.markdown, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if s.json == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.json, append(data, '\n'), 0o644)
}
