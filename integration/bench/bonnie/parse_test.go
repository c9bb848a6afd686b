package bonnie

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

const sample = "1.98,2.00a,guest,1,1795378074,512M,,8192,5,,,121000,30,60500,12,,,+++++,+++,902.5,40,4,,,,,2000,60,+++++,+++,4000,50,1900,61,+++++,+++,3500,55,,979us,1484us,,355us,16062us,1929us,77us,524us,1909us,1945us,104us"

func TestParse(t *testing.T) {
	want := measures{"block write": 121000, "rewrite": 60500, "seeks": 902.5,
		"create, in order": 2000, "delete, in order": 4000, "create, random": 1900,
		"delete, random": 3500}
	got, err := parse("something before\n" + sample + "\n")
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("parse: %v, %v; expected %v", got, err, want)
	}
	for _, bad := range []string{
		"", "1.98", sample + ",", "1.97" + sample[4:], strings.Replace(sample, "902.5", "fast", 1),
		strings.Replace(sample, "902.5", "NaN", 1), strings.Replace(sample, "902.5", "-1", 1),
	} {
		if v, err := parse(bad); !errors.Is(err, errFormat) {
			t.Errorf("parse(%q) = %v, %v; expected %v", bad, v, err, errFormat)
		}
	}
}

func TestSummary(t *testing.T) {
	r := &report{Results: []*result{
		{contender: contender{Name: "one"}, Runs: []measures{{"seeks": 100}, {"seeks": 300},
			{"seeks": 200}}},
		{contender: contender{Name: "two"}, Runs: []measures{{"seeks": 40}, {"seeks": 60}, {}}},
	}}
	r.summarize()
	if got := r.Results[1]; got.Median["seeks"] != 50 || got.SlowDown["seeks"] != 3.75 {
		t.Errorf("median %v, slow-down %v; expected 50 and 3.75", got.Median["seeks"],
			got.SlowDown["seeks"])
	}
	if text := r.table(); !strings.Contains(text, "| seeks | 1.00 | 3.75 |") ||
		!strings.Contains(text, "| rewrite | too fast to tell | too fast to tell |") {
		t.Errorf("table:\n%s", text)
	}
}
