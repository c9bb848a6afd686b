package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cowblk/vhost/frontend"
)

// The CPU time of a process that serves a hundred connected disks, used a moment ago and now idle,
// in one run of ten seconds.
func BenchmarkIdle100Disks(b *testing.B) {
	const disks, rest = 100, 10 * time.Second
	for b.Loop() {
		b.StopTimer()
		dir := shortDir(b)
		args := []string{"serve"}
		for i := range disks {
			name := fmt.Sprintf("d%d", i)
			command(b, dir, "create", name, "--size", "16M")
			args = append(args, name)
		}
		p := start(b, dir, nil, args...)
		var frontends []*frontend.Frontend
		for _, name := range args[1:] {
			f := dial(b, filepath.Join(dir, "run", name+".sock"))
			frontends = append(frontends, f)
			for range 100 { // back to back, so that the queue polls
				writeAt(b, f, 0, pattern(1, 4096))
			}
		}
		time.Sleep(2 * time.Second) // for the runtime's garbage collection and monitor
		before, slices := schedstat(b, p.cmd.Process.Pid)
		b.StartTimer()
		time.Sleep(rest)
		b.StopTimer()
		after, later := schedstat(b, p.cmd.Process.Pid)
		for _, f := range frontends {
			f.Close()
		}
		p.end(b)
		b.ReportMetric(100*float64(after-before)/float64(rest), "%core")
		b.ReportMetric(float64(later-slices)/rest.Seconds(), "wakeups/s")
		b.StartTimer()
	}
}

// schedstat sums over the threads of a process the nanoseconds on a CPU and the number of times
// scheduled.
func schedstat(tb testing.TB, pid int) (ran, times int64) {
	tb.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		tb.Fatalf("threads of %d: %v, %v", pid, tasks, err)
	}
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		fields := strings.Fields(string(text)) // on CPU, waiting, times scheduled
		if len(fields) != 3 {
			tb.Fatalf("%s: %q", path, text)
		}
		for i, p := range map[int]*int64{0: &ran, 2: &times} {
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				tb.Fatalf("%s: %q", path, text)
			}
			*p += n
		}
	}
	return ran, times
}
