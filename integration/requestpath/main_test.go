package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// around is the code that runs around a request or beside it, and that of this program.
var around = []string{"backend/poll.go", "backend/park.go", "backend/stats.go", "backend/waiter.go",
	"backend/kick_watch.go", "backend/worker_control.go", "cow/pagecache/backoff.go",
	"cow/pagecache/look.go", "cow/pagecache/memory_unsafe.go", "eventfd/", "vhost/frontend/",
	"integration/"}

// aside is the code that runs beside a promotion: around, the caller of the command, checksums of
// the new sealed layer, free space.
var aside = slices.Concat(around, []string{"backend/control/client.go", "backend/qmp/link/",
	"backend/daemon/checksums.go", "cow/add_checksums.go", "cow/layer/add_checksums.go",
	"cow/layer/checksum_table.go", "cow/layer/repair.go", "backend/daemon/space.go",
	"backend/daemon/enospc.go"})

var (
	coveredBlock = regexp.MustCompile(`(?m)^cowblk/(\S+\.go):\S+ \d+ [1-9]\d*$`)
	// row is a row of a table of measurements: name, files, packages.
	row = regexp.MustCompile(`(?m)^\| ([^|]+) \| (\d+) \| (\d+) \|$`)
)

// A stranger can follow a request: a hot read passes at most 12 files, a first write at most 14.
// The documents have the numbers of all measurements, and request.md has a link to each file.
func TestFilesOfARequest(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "requestpath")
	run(t, "go", "build", "-cover", "-covermode=atomic", "-coverpkg=cowblk/...", "-o", program, ".")
	run(t, program, dir)
	measured, err := filepath.Glob(filepath.Join(dir, "*", "covmeta.*"))
	if err != nil {
		t.Fatal(err)
	}
	limits := map[string]int{"read of the base": 12, "read of the head": 12,
		"first write beside another": 15}
	documented := 0
	for _, d := range []struct {
		document string
		leaveOut []string
		links    bool
	}{{"request.md", around, true}, {"promotion.md", aside, false}} {
		data, err := os.ReadFile("../../docs/internals/" + d.document)
		if err != nil {
			t.Fatal(err)
		}
		document := string(data)
		for _, r := range row.FindAllStringSubmatch(document, -1) {
			documented++
			name := r[1]
			files := filesOf(t, filepath.Join(dir, name), d.leaveOut)
			packages := map[string]bool{}
			for _, f := range files {
				packages[filepath.Dir(f)] = true
				if d.links && !strings.Contains(document, "](../../"+f+")") {
					t.Errorf("%s: %s has no link to %s", name, d.document, f)
				}
			}
			if r[2] != strconv.Itoa(len(files)) || r[3] != strconv.Itoa(len(packages)) {
				t.Errorf("%s: %s has %s files in %s packages, measured %d in %d: %v", name,
					d.document, r[2], r[3], len(files), len(packages), files)
			}
			if limit := limits[name]; limit > 0 && len(files) > limit {
				t.Errorf("%s: %d files, expected at most %d", name, len(files), limit)
			}
			delete(limits, name)
		}
	}
	if documented != len(measured) || len(limits) > 0 {
		t.Errorf("the documents have %d measurements, expected %d, and lack %v", documented,
			len(measured), limits)
	}
}

// filesOf returns the files, relative to the module, whose code ran in the measurement in dir.
func filesOf(t *testing.T, dir string, leaveOut []string) (files []string) {
	t.Helper()
	profile := dir + ".txt"
	run(t, "go", "tool", "covdata", "textfmt", "-i="+dir, "-o="+profile)
	counts, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range coveredBlock.FindAllStringSubmatch(string(counts), -1) {
		if !slices.ContainsFunc(leaveOut,
			func(p string) bool { return strings.HasPrefix(block[1], p) }) {
			files = append(files, block[1])
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOCOVERDIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}
