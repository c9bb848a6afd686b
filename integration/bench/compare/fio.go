package compare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"cowblk/integration/bench/compare/report"
)

// fioReads returns tasks for fio's engines on the bare base image. Engines without a queue are used
// for queue depth 1 only.
func (s *site) fioReads(qd int, workload string) (all []task) {
	engines := []string{"psync", "mmap", "io_uring"}
	if qd > 1 {
		engines = []string{"io_uring"}
	}
	for _, e := range engines {
		all = append(all, task{report.Fio(e), "fio " + e + ", bare file", workload, false,
			func(ctx context.Context, _ int) (report.Sample, error) {
				return s.runFio(ctx, s.base(), e, qd, false)
			}})
	}
	return all
}

// fioOutput has the members of fio's JSON that are used.
type fioOutput struct {
	Jobs []struct {
		Error int `json:"error"`
		Read  struct {
			IOPS    float64 `json:"iops"`
			Bytes   float64 `json:"bw_bytes"`
			Total   uint64  `json:"total_ios"`
			Runtime float64 `json:"runtime"` // ms
			Latency struct {
				Mean       float64            `json:"mean"`
				Max        float64            `json:"max"`
				Percentile map[string]float64 `json:"percentile"`
			} `json:"clat_ns"`
		} `json:"read"`
		User   float64 `json:"usr_cpu"` // per cent
		System float64 `json:"sys_cpu"`
	} `json:"jobs"`
}

// runFio makes random reads of a file.
func (s *site) runFio(ctx context.Context, file, engine string, qd int, direct bool) (report.Sample,
	error) {
	args := []string{
		"--name=compare", "--filename=" + file, "--readonly", "--rw=randread", "--bs=4k",
		"--ioengine=" + engine,
		"--iodepth=" + strconv.Itoa(qd), "--size=" + strconv.FormatInt(s.size, 10), "--time_based",
		"--randrepeat=0",
		"--norandommap", "--random_generator=tausworthe64", "--invalidate=0",
		"--output-format=json",
		"--percentile_list=1:10:25:50:75:90:95:99:99.5:99.9:99.95:99.99",
		"--runtime=" + milliseconds(s.time),
		"--ramp_time=" + milliseconds(time.Duration(float64(s.time)*warmup)),
	}
	if direct {
		args = append(args, "--direct=1")
	}
	cmd := exec.CommandContext(ctx, s.fio, args...)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return report.Sample{}, fmt.Errorf("fio %s: %w: %s", engine, err, exit.Stderr)
		}
		return report.Sample{}, err
	}
	return parseFio(out)
}

func milliseconds(t time.Duration) string { return fmt.Sprintf("%dms", t.Milliseconds()) }

func parseFio(text []byte) (s report.Sample, err error) {
	var out fioOutput
	if err := json.Unmarshal(text, &out); err != nil {
		return s, fmt.Errorf("fio's output: %w", err)
	}
	if len(out.Jobs) != 1 || out.Jobs[0].Error != 0 || out.Jobs[0].Read.Total == 0 {
		return s, errors.New("fio's output: expected one job with reads")
	}
	j := &out.Jobs[0]
	l := &j.Read.Latency
	s = report.Sample{
		Requests: j.Read.Total, IOPS: j.Read.IOPS, Bytes: j.Read.Bytes,
		Server: (j.User + j.System) / 100 * j.Read.Runtime * 1e6 / float64(j.Read.Total),
		Latency: report.Latencies{
			Mean: l.Mean, Max: l.Max, P50: l.Percentile["50.000000"],
			P90: l.Percentile["90.000000"],
			P99: l.Percentile["99.000000"], P999: l.Percentile["99.900000"],
		},
	}
	for q, v := range l.Percentile {
		f, err := strconv.ParseFloat(q, 64)
		if err != nil {
			return s, fmt.Errorf("fio's output: percentile %q: %w", q, err)
		}
		s.Curve = append(s.Curve, report.Quantile{Q: f / 100, Latency: v})
	}
	slices.SortFunc(s.Curve, func(a, b report.Quantile) int {
		if a.Q < b.Q {
			return -1
		}
		return 1
	})
	return s, nil
}
