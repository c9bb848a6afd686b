package report

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := Median(c.in); got != c.want {
			t.Errorf("Median(%v) = %v, expected %v", c.in, got, c.want)
		}
	}
	in := []float64{3, 1, 2}
	if Median(in); in[0] != 3 {
		t.Error("Median sorted its argument")
	}
}

func samples(iops ...float64) (all []Sample) {
	for i, v := range iops {
		all = append(all, Sample{
			Round: i, IOPS: v, Bytes: v * 4096, Server: 1e9 / v, Driver: 1e9 / v,
			Latency: Latencies{Mean: 1e9 / v, P50: 1e9 / v, P90: 2e9 / v, P99: 4e9 / v,
				P999: 9e9 / v, Max: 1e11 / v},
			Curve: []Quantile{{0, 0.8e9 / v}, {0.5, 1e9 / v}, {0.9, 2e9 / v}, {0.99, 4e9 / v},
				{0.999, 9e9 / v}, {0.9999, 3e10 / v}, {1, 1e11 / v}},
		})
	}
	return all
}

func TestRatiosPairRounds(t *testing.T) {
	a := &Point{Rounds: samples(10, 20, 90)}
	b := &Point{Rounds: samples(1, 2, 3)}
	b.Rounds = b.Rounds[:2]
	got := Ratios(a, b, iops)
	if len(got) != 2 || got[0] != 10 || got[1] != 10 {
		t.Errorf("ratios %v, expected 10 twice: the round that b lacks is omitted", got)
	}
	if Ratios(nil, b, iops) != nil || Ratios(a, &Point{Rounds: samples(0)}, iops) != nil {
		t.Error("ratios of nothing, or to 0")
	}
}

func TestJudge(t *testing.T) {
	more := target{unit: "×", bar: 5, stretch: 8}
	less := target{unit: "s", bar: 3, stretch: 1, less: true}
	strict := target{unit: "% CPU", bar: 0.5, stretch: 0, less: true, strict: true}
	for _, c := range []struct {
		target target
		values []float64
		want   string
	}{
		{more, []float64{8, 7.9, 8.1}, Stretched}, {more, []float64{5}, Passed},
		{more, []float64{4.9996}, Passed},
		{more, []float64{4.99}, Missed}, {more, []float64{1, 9, 9}, Stretched},
		{more, nil, Unknown},
		{less, []float64{0.4}, Stretched}, {less, []float64{3}, Passed}, {less, []float64{3.1},
			Missed},
		{strict, []float64{0}, Stretched}, {strict, []float64{0.0001}, Stretched},
		{strict, []float64{0.3}, Passed}, {strict, []float64{0.5}, Missed},
	} {
		c.target.measure = func(*Results) measured {
			return measured{values: c.values, detail: "d"}
		}
		v := c.target.judge(nil)
		if v.Result != c.want {
			t.Errorf("%v against %s, %s: %s, expected %s", c.values, v.Bar, v.Stretch, v.Result,
				c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		target target
		want   string
	}{
		{target{unit: "×", bar: 5}, "≥ 5×"}, {target{unit: "s", bar: 3, less: true}, "≤ 3 s"},
		{target{unit: "MiB", bar: 1, less: true, strict: true}, "< 1 MiB"},
		{target{unit: "×", bar: 0.97}, "≥ 0.97×"},
	} {
		if got := c.target.limit(c.target.bar); got != c.want {
			t.Errorf("limit %q, expected %q", got, c.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 3: "3", 0.974: "0.97", 12.34: "12.3", 345.6: "346", 123456: "123k", 12345: "12.3k",
		5067.4: "5,067", 2345678: "2.35M", 0.0004: "0.0004",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, expected %q", v, got, want)
		}
	}
}

// full returns results in which everything was measured.
func full() *Results {
	r := &Results{
		Machine: Machine{CPU: "A CPU", Cores: 2, Memory: 24 << 30, Kernel: "6.18",
			FileSystem: "ext4", Date: time.Unix(1164585600, 0).UTC()},
		Settings: Settings{Size: 1 << 30, Area: 512 << 20, Time: 2 * time.Second, Rounds: 3},
		Missing:  map[string]string{},
	}
	add := func(key, workload string, v float64) {
		for _, s := range samples(v, v*1.1, v*0.9) {
			r.Add(key, "label of "+key, workload, s)
		}
	}
	for _, w := range []string{ReadQD1, ReadQD32} {
		for i, d := range Depths() {
			add(Stack(d), w, 600e3-float64(i)*1e3)
			if d <= 32 {
				add(Chain(d), w, 300e3/float64(d+1))
			}
		}
		add(RawRead, w, 610e3)
		add(QSDRead, w, 200e3)
	}
	for _, w := range []string{WriteQD1, WriteQD32, WriteFlush} {
		for _, k := range []string{Head(1), Head(8), RawWrite, QSDWrite, QcowHead} {
			add(k, w, 100e3)
		}
	}
	for _, w := range []string{FirstQD1, FirstQD32} {
		add(FreshHead, w, 90e3)
		add(Sparse, w, 100e3)
		add(FreshQcow2, w, 10e3)
	}
	add(Stack(8), SeqRead, 50e3)
	add(Memcpy, SeqRead, 60e3)
	for _, w := range []string{OwnedQD1, OwnedQD32, OwnedSeq} {
		for _, k := range []string{Stack(1), Head(1), HeadRandom, HeadHalf, Scattered(8),
			Scattered(32), QcowRandom, QcowHalf} {
			add(k, w, 100e3)
		}
	}
	add(Head(1), WriteThenRead, 45e3)
	add(FreshHead, FirstTouch, 400e3)
	add(FreshRaw, FirstTouch, 180e3)
	add(StackDirect, ColdQD32, 10e3)
	add(FioDirect, ColdQD32, 11e3)
	add(SlowStack, HotAlone, 20e3)
	add(SlowStack, HotWithCold, 20e3)
	for _, k := range []string{IdleCPU, IndexWorst, IndexFiles, IndexClone, OpenTime,
		OpenFileTime} {
		r.AddSingle(k, "label of "+k, 0.25, "u")
	}
	return r
}

func TestEveryTargetIsJudged(t *testing.T) {
	r := full()
	r.Judge()
	for _, v := range r.Targets {
		if v.Result == Unknown || v.Value == nil {
			t.Errorf("%s: not measured: %s", v.Name, v.Detail)
		}
	}
	if len(r.Misses()) == 0 {
		t.Error("no misses, though reads are 5 times and overwrites once as fast as qcow2's")
	}
	empty := &Results{Missing: map[string]string{StackDirect: "serve does not know --cache"}}
	empty.Judge()
	explained := false
	for _, v := range empty.Targets {
		if v.Result != Unknown || v.Detail == "" {
			t.Errorf("%s: %s, with nothing measured", v.Name, v.Result)
		}
		explained = explained || strings.Contains(v.Detail, "does not know --cache")
	}
	if !explained || len(empty.Misses()) != 0 {
		t.Error("the reason is missing, or an unmeasured target counts as missed")
	}
}

// A write of 10 µs and a read of 5 µs alone make 66,667 pairs per second. Rounds that one of the
// three lacks do not count.
func TestPairsAlone(t *testing.T) {
	r := &Results{Missing: map[string]string{}}
	for _, s := range []Sample{{Round: 0, IOPS: 100e3}, {Round: 1, IOPS: 50e3},
		{Round: 2, IOPS: 1}} {
		r.Add(Head(1), "", WriteQD1, s)
	}
	for _, s := range []Sample{{Round: 1, IOPS: 50e3}, {Round: 0, IOPS: 200e3}, {Round: 3}} {
		r.Add(Head(1), "", OwnedQD1, s)
	}
	if m := writeThenRead(r); len(m.values) != 0 || m.detail == "" {
		t.Errorf("without pairs: %+v", m)
	}
	for _, s := range []Sample{{Round: 0, IOPS: 1e6 / 30}, {Round: 1, IOPS: 25e3},
		{Round: 2, IOPS: 9}} {
		r.Add(Head(1), "", WriteThenRead, s)
	}
	m := writeThenRead(r)
	if len(m.values) != 2 || math.Abs(m.values[0]-0.5) > 1e-9 || math.Abs(m.values[1]-1) > 1e-9 {
		t.Errorf("ratios %v, expected 0.5 and 1", m.values)
	}
}

func TestReadTail(t *testing.T) {
	r := &Results{Missing: map[string]string{}}
	r.Add(Stack(1), "", ReadQD1, Sample{Latency: Latencies{P50: 2000, P99: 3100}})
	m := readTail(r)
	if len(m.values) != 1 || m.values[0] != 3.1 || m.detail != "median 2 µs" {
		t.Errorf("%+v, expected 3.1 µs and a median of 2", m)
	}
}

func TestTextShowsEverything(t *testing.T) {
	r := full()
	r.Notes = append(r.Notes, "a note")
	r.Judge()
	for _, text := range []string{r.Text(), r.Markdown([]string{"a.svg"})} {
		for _, w := range workloads {
			if !strings.Contains(text, w.title) {
				t.Errorf("no table of %s", w.key)
			}
		}
		for _, want := range []string{"A CPU", "a note", "label of " + IdleCPU,
			"first write QD1 against qcow2", Stretched, Missed, "512 MiB"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing", want)
			}
		}
	}
}

func TestGridAligns(t *testing.T) {
	g := grid{{"name", "v", detailHeading}, {"äö", "100", "x"}, {"longer", "2", "yy"}}
	want := "name      v  from\n─────────────────\näö      100  x   \nlonger    2  yy  \n"
	if got := g.plain(); got != want {
		t.Errorf("table:\n%sexpected:\n%s", got, want)
	}
	if got := g.markdown(); !strings.HasPrefix(got, "| name | v | from |\n|---|---:|---:|\n| äö ") {
		t.Errorf("markdown:\n%s", got)
	}
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	r := full()
	r.Judge()
	test.Must(t, r.Write(dir))
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	test.Must(t, err)
	var back Results
	test.Must(t, json.Unmarshal(text, &back))
	if len(back.Points) != len(r.Points) || len(back.Targets) != len(targets()) {
		t.Errorf("%d points and %d targets came back, expected %d and %d", len(back.Points),
			len(back.Targets), len(r.Points), len(targets()))
	}
	plots, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil || len(plots) != 8 {
		t.Fatalf("%d plots (%v), expected 8", len(plots), err)
	}
	for _, p := range plots {
		checkSVG(t, p)
	}
	if s, err := os.ReadFile(filepath.Join(dir, "results.md")); err != nil ||
		strings.Count(string(s), ".svg)") != 8 {
		t.Errorf("the plots are not in the markdown (%v)", err)
	}
	if err := (&Results{}).Write(t.TempDir()); err != nil {
		t.Errorf("nothing measured: %v", err)
	}
}

// checkSVG parses a file as XML and requires shapes and letters in it, all at numeric positions.
func checkSVG(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	test.Must(t, err)
	defer f.Close()
	seen := map[string]int{}
	for d := xml.NewDecoder(f); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if e, ok := tok.(xml.StartElement); ok {
			seen[e.Name.Local]++
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("%s: %s=%q in <%s>", path, a.Name.Local, a.Value, e.Name.Local)
				}
			}
		}
	}
	if seen["svg"] != 1 || seen["path"] < 3 || seen["text"] < 5 {
		t.Errorf("%s: elements %v, expected a plot", path, seen)
	}
}

func TestBusy(t *testing.T) {
	for load, busy := range map[string]bool{"0.10 3.00 9.00": false, "0.49 3.00 9.00": false,
		"0.50 0.00 0.00": true, "1.50 0.00 0.00": true, "": false} {
		if got := (Machine{LoadBefore: load}).Busy(); (got != "") != busy {
			t.Errorf("load %q: warning %q", load, got)
		}
	}
}

func TestDescribe(t *testing.T) {
	m := Describe(t.TempDir(), "no-such-program", "no-such-program")
	if m.CPU == "" || m.Cores == 0 || m.Kernel == "" || m.Memory == 0 || m.LoadBefore == "" ||
		m.QEMU != "" {
		t.Errorf("machine %+v", m)
	}
	if s := m.String(); !strings.Contains(s, m.CPU) || !strings.Contains(s, m.Kernel) {
		t.Errorf("machine in words: %s", s)
	}
}
