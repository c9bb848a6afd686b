package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// wall finds where a time loses its monotonic part, or comes from outside and has none: what is compared with it, or
// waits for it, goes wrong when somebody sets the clock.
var wall = regexp.MustCompile(`\.Unix(Nano|Micro|Milli)?\(\)|\.Round\(0\)|\btime\.(Unix|UnixMilli|UnixMicro|Date|Parse|ParseInLocation)\(|ClockGettime|Gettimeofday`)

// wallClock says which files may do that, and why a clock that jumps decides nothing there.
var wallClock = map[string]string{
	"backend/control/message.go": "the timestamp of an event, for a person",
	"cmd/cowblk/watch.go":        "the timestamp of an event, for a person",
	"backend/hooks.go":           "QEMU's own times: after a jump one tag is made too many, never one too few",
	"cow/layer/header.go":        "times in a layer's header, for a person",
	"cow/store/disk_survey.go":   "a manifest's time of change beside the file system's own time: after a jump one is read once too often, or has to be changed in the same nanosecond as before",
	"cow/store/base.go":          "a file's modification time, compared with what was recorded of the same file",
}

// Whatever waits, limits or forgets goes by the monotonic clock: somebody may set the other one, backwards too. Under
// vhost/load and integration time is what is measured, and nothing is decided; cow/cowtest is tests.
func TestNothingGoesByTheWallClock(t *testing.T) {
	used := map[string]bool{}
	for _, p := range packages(t) {
		if under(p.ImportPath, "integration") || under(p.ImportPath, "vhost/load") || under(p.ImportPath, "cow/cowtest") {
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
				code = strings.ReplaceAll(code, "time.Unix(1, 0)", "") // as a deadline: one that is over
				if !wall.MatchString(code) {
					continue
				}
				used[name] = true
				if wallClock[name] == "" {
					t.Errorf("%s:%d goes by the wall clock: use a time.Time with its monotonic part, or say in wallClock why a jump does no harm: %s", name, n+1, strings.TrimSpace(line))
				}
			}
		}
	}
	for name := range wallClock {
		if !used[name] {
			t.Errorf("%s does not go by the wall clock any more: take it off the list", name)
		}
	}
}
