package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// around is the code that runs around a request or beside it.
var around = []string{"backend/poll.go", "backend/park.go", "backend/stats.go", "backend/waiter.go",
	"backend/kick_watch.go", "backend/worker_control.go", "eventfd/", "vhost/frontend/",
	"integration/"}

var coveredBlock = regexp.MustCompile(`(?m)^cowblk/(\S+\.go):\S+ \d+ [1-9]\d*$`)

// A stranger can follow a request: a hot read passes at most 12 files, a first write at most 14,
// and the document has a link to each.
func TestFilesOfARequest(t *testing.T) {
	document, err := os.ReadFile("../../docs/internals/request.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "requestpath")
	run(t, "go", "build", "-cover", "-covermode=atomic", "-coverpkg=cowblk/...", "-o", program, ".")
	run(t, program, dir)
	for name, limit := range map[string]int{"read of the base": 12, "read of the head": 12,
		"first write": 14} {
		profile := filepath.Join(dir, name+".txt")
		run(t, "go", "tool", "covdata", "textfmt", "-i="+filepath.Join(dir, name), "-o="+profile)
		counts, err := os.ReadFile(profile)
		if err != nil {
			t.Fatal(err)
		}
		var files []string
		for _, block := range coveredBlock.FindAllStringSubmatch(string(counts), -1) {
			if !slices.ContainsFunc(around,
				func(p string) bool { return strings.HasPrefix(block[1], p) }) {
				files = append(files, block[1])
			}
		}
		slices.Sort(files)
		files = slices.Compact(files)
		if len(files) > limit || !slices.Contains(files, "backend/worker.go") {
			t.Errorf("%s: %d files, expected at most %d with backend/worker.go: %v", name,
				len(files), limit, files)
		}
		for _, f := range files {
			if !strings.Contains(string(document), "](../../"+f+")") {
				t.Errorf("%s: request.md has no link to %s", name, f)
			}
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "GOCOVERDIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}
