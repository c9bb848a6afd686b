package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// wallPattern matches code in which a time loses its monotonic part, or comes from outside without
// one. A comparison with such a time, or a wait for it, goes wrong when the clock is set.
var wallPattern = regexp.MustCompile(
	`\.Unix(Nano|Micro|Milli)?\(\)|\.Round\(0\)|\btime\.(Unix|UnixMilli|UnixMicro|Date|Parse|ParseInLocation)\(|ClockGettime|Gettimeofday`)

// wallClockFiles lists the files that may do that, each with the reason why a jump of the clock
// does no harm.
var wallClockFiles = map[string]string{
	"backend/control/message.go": "the timestamp of an event, for display",
	"cmd/cowblk/watch.go":        "the timestamp of an event, for display",
	"backend/daemon/hooks.go":    "QEMU's own times: after a jump one tag is made too many, never one too few",
	"cow/layer/header.go":        "times in a layer's header, for display",
	"cow/store/survey.go":        "a manifest's ctime beside the file system's own time: a jump causes one extra read, or is missed if it hits the same nanosecond",
	"cow/imagefile/state.go":     "a file's modification time, compared with the recorded one for equality",
}

// Waits, limits and expiries use the monotonic clock: the wall clock may be set, backwards too. Not
// covered: vhost/load and integration only measure times, and cow/cowtest is for tests.
func TestNoWallClock(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		if under(p.ImportPath, "integration") || under(p.ImportPath, "vhost/load") ||
			under(p.ImportPath, "cow/cowtest") {
			continue
		}
		for _, f := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimPrefix(p.ImportPath, module) + "/" + f
			for n, line := range strings.Split(string(text), "\n") {
				code, _, _ := strings.Cut(line, "//")
				code = strings.ReplaceAll(code, "time.Unix(1, 0)", "") // a deadline in the past
				if !wallPattern.MatchString(code) {
					continue
				}
				used[name] = true
				if wallClockFiles[name] == "" {
					t.Errorf("%s:%d uses the wall clock: use a time.Time with its monotonic part, or explain in wallClockFiles why a jump does no harm: %s", name, n+1, strings.TrimSpace(line))
				}
			}
		}
	}
	for name := range wallClockFiles {
		if !used[name] {
			t.Errorf("%s does not use the wall clock any more: remove it from the list", name)
		}
	}
}
