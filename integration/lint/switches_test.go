package lint

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// The table of switches in CONTRIBUTING.md has every environment variable that a person may set,
// and no other. COWBLK_TEST_… are for the child processes of tests.
func TestSwitchesAreListed(t *testing.T) {
	document, err := os.ReadFile("../../CONTRIBUTING.md")
	test.Must(t, err)
	_, table, _ := strings.Cut(string(document), "\n## Switches\n")
	table, _, _ = strings.Cut(table, "\n## ")
	out, err := exec.Command("git", "-C", "../..", "grep", "-lI", "COWBLK_").Output()
	test.Must(t, err)
	name := regexp.MustCompile(`\bCOWBLK_[A-Z0-9_]*[A-Z0-9]\b`)
	used := map[string]string{}
	for _, file := range strings.Fields(string(out)) {
		if strings.HasSuffix(file, ".md") {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../..", file))
		test.Must(t, err)
		for _, n := range name.FindAllString(string(text), -1) {
			if !strings.HasPrefix(n, "COWBLK_TEST_") {
				used[n] = file
			}
		}
	}
	for _, n := range name.FindAllString(table, -1) {
		if used[n] == "" {
			t.Errorf("CONTRIBUTING.md lists %s, which nothing uses", n)
		}
		delete(used, n)
	}
	for n, file := range used {
		t.Errorf("CONTRIBUTING.md does not list %s, which %s uses", n, file)
	}
}
