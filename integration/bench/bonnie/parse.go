package bonnie

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// measures holds bonnie++'s rates by name. A test that was too fast for bonnie++ to give a rate is
// missing.
type measures map[string]float64

// columns are the rates in bonnie++'s comma-separated line, format 1.98.
var columns = []struct {
	Name  string
	Unit  string
	field int
}{
	{"block write", "KiB/s", 11},
	{"rewrite", "KiB/s", 13},
	{"block read", "KiB/s", 17},
	{"seeks", "/s", 19},
	{"create, in order", "/s", 26},
	{"stat, in order", "/s", 28},
	{"delete, in order", "/s", 30},
	{"create, random", "/s", 32},
	{"stat, random", "/s", 34},
	{"delete, random", "/s", 36},
}

// fields is the number of fields of such a line: 38 as above, then twelve latencies.
const fields = 50

var errFormat = errors.New("not a bonnie++ line of format 1.98")

// parse returns the rates of the last line that bonnie++ printed.
func parse(output string) (measures, error) {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	line := lines[len(lines)-1]
	f := strings.Split(line, ",")
	if len(f) != fields || f[0] != "1.98" {
		return nil, fmt.Errorf("%w: %q", errFormat, line)
	}
	v := measures{}
	for _, c := range columns {
		text := f[c.field]
		if text == "" || strings.Trim(text, "+") == "" {
			continue
		}
		rate, err := strconv.ParseFloat(text, 64)
		if err != nil || !(rate > 0) {
			return nil, fmt.Errorf("%w: %s is %q in %q", errFormat, c.Name, text, line)
		}
		v[c.Name] = rate
	}
	return v, nil
}
