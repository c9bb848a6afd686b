package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/load"
)

// benchmark runs "cowblk bench --json".
func benchmark(t *testing.T, args ...string) *load.Report {
	t.Helper()
	var out benchOutput
	text := command(t, t.TempDir(), append([]string{"bench", "--json", "--yes"}, args...)...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if out.Sum.Errors != 0 {
		t.Fatalf("bench %v: %d errors of %d requests", args, out.Sum.Errors, out.Sum.Requests)
	}
	return out.Sum
}

// benchFor is benchmark with a longer time until some hundred requests are counted, because the
// machine may be busy.
func benchFor(t *testing.T, args ...string) *load.Report {
	t.Helper()
	for d := 30 * time.Millisecond; ; d *= 3 {
		if r := benchmark(t, append(args, "--warmup", "0s", "--time",
			d.String())...); r.Requests > 300 || d > time.Minute {
			return r
		}
	}
}

// A load on disks that cowblk serves: first writes fill the head block by block, flushes and the
// write cache have effect, two disks of one process are loaded at once.
func TestBench(t *testing.T) {
	dir := storeWith(t, "8M", "vm1", "vm2")
	sockets := []string{filepath.Join(dir, "run/vm1.sock"), filepath.Join(dir, "run/vm2.sock")}
	p := start(t, dir, nil, "serve", "vm1", "vm2")
	for _, s := range sockets {
		dial(t, s).Close()
	}
	if r := benchmark(t, sockets[0], "--first-write", "--qd", "16", "--queues", "2",
		"--no-poll"); !r.Exhausted || r.Writes != 2048 || r.BackendPID != p.cmd.Process.Pid ||
		r.CPUBackend == nil || *r.CPUBackend <= 0 {
		t.Errorf("%d first writes, all: %t, process %d, CPU %v", r.Writes, r.Exhausted,
			r.BackendPID, r.CPUBackend)
	}
	zero := make([]byte, 4096)
	f := dial(t, sockets[0])
	for off := int64(0); off < f.Capacity(); off += int64(len(zero)) {
		got := make([]byte, len(zero))
		if _, err := f.Driver(0).ReadAt(got, off); err != nil || bytes.Equal(got, zero) {
			t.Fatalf("block at %d was not written (%v)", off, err)
		}
	}
	f.Close()
	if r := benchmark(t, sockets[1], "--rw", "write", "--first-write", "--size", "1M", "--offset",
		"1M", "--fsync", "1", "--wce", "on", "--no-poll"); r.Writes != 256 || r.Flushes != 256 ||
		!*r.WriteCache {
		t.Errorf("%d writes, %d flushes, write cache %v", r.Writes, r.Flushes, *r.WriteCache)
	}
	if r := benchFor(t, sockets[1], "--rw", "randrw", "--rwmixread", "20", "--wce", "off",
		"--no-poll"); r.Reads == 0 || r.Reads > r.Writes || *r.WriteCache {
		t.Errorf("%d reads, %d writes, write cache %v", r.Reads, r.Writes, *r.WriteCache)
	}
	if r := benchFor(t, append(sockets, "--no-poll")...); r.Sockets != 2 || r.CPUBackend == nil {
		t.Errorf("%d sockets, CPU of the back-end %v", r.Sockets, r.CPUBackend)
	}
	p.end(t)
}

// The table has a row for each socket, one for the sum, and rows for reads, writes and flushes.
func TestBenchTable(t *testing.T) {
	text := command(t, t.TempDir(), "bench", "--null", "--time", "1s", "--warmup", "0s", "--rw",
		"randrw", "--fsync", "2", "--no-poll")
	for _, want := range []string{
		"randrw 50/50 4.0 KiB, 1 in flight, 1 queue, blocking, a flush every 2 writes, write cache on, 1s\n", "\nnull ", "\n  reads ", "\n  writes ", "\n  flushes ", "CPU BACK-END", "\nCPU back-end: the back-end is in this process"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	a := &load.Report{Options: load.Options{Socket: "a"}, IOPS: 1234567, CPUBackend: new(float64)}
	b := &load.Report{Options: load.Options{Socket: "b", FirstWrite: true},
		BackendNote: "unknown: gone", Errors: 2}
	var out bytes.Buffer
	test.Must(t, (&app{out: &out}).printBench([]*load.Report{a, b}, b))
	for _, want := range []string{"\na    1,234,567 ", "\nb ", "\nall ", " unknown ",
		"\nCPU back-end of b: unknown: gone\n", "\nnot every block was written in this time\n",
		"\n2 requests failed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestNanosText(t *testing.T) {
	for ns, want := range map[float64]string{
		0: "0 ns", 512.4: "512 ns", 999.4: "999 ns", 999.6: "1.00 µs", 2141: "2.14 µs",
		9996: "10.0 µs", 31_000_000: "31.0 ms",
		99_960: "100 µs", 999_600: "1.00 ms", 1.2e9: "1.20 s", 1e11: "100 s",
	} {
		if got := nanosText(ns); got != want {
			t.Errorf("%f: %s, expected %s", ns, got, want)
		}
	}
}

// On a terminal, a load that overwrites asks for confirmation.
func TestBenchAsks(t *testing.T) {
	s := newScript(t)
	for answer, goes := range map[string]bool{"n\n": false, "y\n": true} {
		var out, errOut bytes.Buffer
		a := s.app(&out, &errOut)
		a.in = strings.NewReader(answer)
		a.terminal = func(stream any) bool { return stream == a.in || stream == a.err }
		code := run([]string{"bench", "nosuch.sock", "--rw", "write"}, a)
		if !strings.Contains(errOut.String(),
			"Overwrite data on the disk behind nosuch.sock (write)? [y/N] ") {
			t.Errorf("question %q", &errOut)
		}
		if (code == exitFailure) != goes || (code == exitUnconfirmed) == goes {
			t.Errorf("answer %q: exit %d, %s", answer, code, &out)
		}
	}
}
