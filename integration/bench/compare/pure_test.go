package compare

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"cowblk/cow/layer"
	"cowblk/integration/bench/compare/report"
	"cowblk/internal/test"
)

func TestLayersShareNoExtent(t *testing.T) {
	for _, size := range []int64{128 * mib, 512 * mib, 1 << 30, 192 * mib} {
		seen := map[int64]int{}
		for n := 1; n < deepest; n++ {
			extents := layerExtents(n, size)
			if len(extents) != extentsPerLayer {
				t.Fatalf("layer %d has %d extents", n, len(extents))
			}
			for _, x := range extents {
				if x.offset < 0 || x.offset+x.length > size || x.offset%extentLength != 0 ||
					x.length != extentLength {
					t.Errorf("size %d, layer %d: extent %+v", size, n, x)
				}
				if before := seen[x.offset]; before != 0 {
					t.Errorf("size %d: layers %d and %d own the extent at %d", size, before, n,
						x.offset)
				}
				seen[x.offset] = n
			}
		}
	}
}

func TestChainNode(t *testing.T) {
	text, err := json.Marshal(chainNode("base.img", []string{"a.qcow2", "b.qcow2"}))
	test.Must(t, err)
	want := `{"backing":{"backing":{"driver":"raw","file":{"aio":"io_uring","driver":"file","filename":"base.img"}},` +
		`"driver":"qcow2","file":{"aio":"io_uring","driver":"file","filename":"a.qcow2"}},` +
		`"driver":"qcow2","file":{"aio":"io_uring","driver":"file","filename":"b.qcow2"}}`
	if string(text) != want {
		t.Errorf("block device\n%s\nexpected\n%s", text, want)
	}
}

func TestParseFio(t *testing.T) {
	const good = `{"jobs":[{"error":0,"read":{"iops":250000.5,"bw_bytes":1024000000,"total_ios":500000,"runtime":2000,
		"clat_ns":{"mean":3500,"max":90000,"percentile":{"99.990000":70000,"50.000000":3000,"90.000000":4000,"99.000000":9000,"99.900000":20000}}},
		"usr_cpu":20,"sys_cpu":80}]}`
	s, err := parseFio([]byte(good))
	test.Must(t, err)
	// 2 s of one CPU for 500,000 requests.
	if s.IOPS != 250000.5 || s.Requests != 500000 || s.Server != 4000 {
		t.Errorf("sample %+v", s)
	}
	if l := s.Latency; l != (report.Latencies{Mean: 3500, P50: 3000, P90: 4000, P99: 9000,
		P999: 20000, Max: 90000}) {
		t.Errorf("latencies %+v", l)
	}
	if !slices.IsSortedFunc(s.Curve, func(a, b report.Quantile) int {
		return int(1e6 * (a.Q - b.Q))
	}) || len(s.Curve) != 5 {
		t.Errorf("curve %v", s.Curve)
	}
	for name, bad := range map[string]string{
		"nothing": "", "no job": `{"jobs":[]}`,
		"nothing read": `{"jobs":[{"read":{"total_ios":0}}]}`,
		"an error":     `{"jobs":[{"error":5,"read":{"total_ios":1}}]}`,
		"quantile":     `{"jobs":[{"read":{"total_ios":1,"clat_ns":{"percentile":{"x":1}}}}]}`,
	} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestPlan(t *testing.T) {
	s := &site{settings: &settings{size: 1 << 30, area: 512 * mib, rounds: 5, time: time.Second}}
	seen := map[string]bool{}
	for _, task := range s.tasks() {
		key := task.contender + " " + task.workload
		if seen[key] {
			t.Errorf("%s occurs twice", key)
		}
		seen[key] = true
		if task.label == "" || report.WorkloadTitle(task.workload) == task.workload {
			t.Errorf("%s has no label or title", key)
		}
	}
	// The results have every point that a target needs, so no target lacks one.
	r := &report.Results{Missing: map[string]string{}}
	for _, task := range s.tasks() {
		r.Add(task.contender, task.label, task.workload, report.Sample{IOPS: 1, Bytes: 1,
			Latency: report.Latencies{P99: 1}})
	}
	for _, k := range []string{report.IdleCPU, report.IndexClone, report.IndexFiles,
		report.IndexWorst, report.OpenTime, report.OpenFileTime} {
		r.AddSingle(k, k, 1, "")
	}
	r.Judge()
	for _, v := range r.Targets {
		if v.Result == report.Unknown {
			t.Errorf("nothing measures %q: %s", v.Name, v.Detail)
		}
	}
}

func TestLargeShares(t *testing.T) {
	for name, own := range map[string]func(*layer.Bitmap, *rand.Rand){
		"scattered": scattered, "files": largeFiles} {
		b, err := layer.NewBitmap(64 << 30 / layer.DefaultBlockSize)
		test.Must(t, err)
		own(b, rand.New(rand.NewPCG(1, 2)))
		if share := float64(b.Count()) / float64(b.Blocks()); share < 0.04 || share > 0.06 {
			t.Errorf("%s: %.3f of the blocks, expected about 0.05", name, share)
		}
	}
}

func TestCopies(t *testing.T) {
	n := 0
	s := copies(time.Millisecond, 4096, func() { n++ })
	if n == 0 || s.Requests != uint64(n) || s.Bytes != s.IOPS*4096 {
		t.Errorf("%d copies, sample %+v", n, s)
	}
}

func TestCheck(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "cowblk")
	test.Must(t, os.WriteFile(binary, nil, 0o700))
	good := settings{cowblk: binary, dir: "relative", size: 1 << 30, area: 128 * mib,
		time: time.Second, rounds: 1}
	s := good
	if err := s.check(); err != nil || !filepath.IsAbs(s.dir) {
		t.Errorf("%v, directory %s", err, s.dir)
	}
	for name, change := range map[string]func(*settings){
		"no rounds":        func(s *settings) { s.rounds = 0 },
		"no time":          func(s *settings) { s.time = 0 },
		"small":            func(s *settings) { s.size = mib },
		"area beyond":      func(s *settings) { s.area = 2 << 30 },
		"odd size":         func(s *settings) { s.size++ },
		"no such a binary": func(s *settings) { s.cowblk += "x" },
	} {
		s := good
		if change(&s); s.check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBusyMachineIsRefused(t *testing.T) {
	busy := report.Machine{LoadBefore: "0.50 0.10 0.10"}
	for _, c := range []struct {
		settings settings
		machine  report.Machine
		want     error
	}{
		{settings{}, busy, errBusy}, {settings{quick: true}, busy, errBusy},
		{settings{busy: true}, busy, nil},
		{settings{}, report.Machine{LoadBefore: "0.49 9.00 9.00"}, nil},
	} {
		if err := c.settings.checkLoad(c.machine); !errors.Is(err, c.want) {
			t.Errorf("load %s, --busy %t: %v, expected %v", c.machine.LoadBefore,
				c.settings.busy, err, c.want)
		}
	}
}
