package lint

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// replaced are words that the house had before it took those of the field, and what to say instead.
// CONTRIBUTING.md has the words in use. They are refused in identifiers, also as a part of one, in
// comments, texts and documents.
var replaced = map[string]string{
	"bell":        "notifier",
	"calm":        "log limiter",
	"calmed":      "log limiter",
	"crew":        "thread pool",
	"idler":       "busy poll",
	"keeper":      "store",
	"mailbox":     "scheduled functions",
	"mortal":      "shared map",
	"postpone":    "submit asynchronously",
	"predecessor": "old process",
	"relic":       "hand-over state",
	"relics":      "hand-over state",
	"shortage":    "ENOSPC",
	"shortages":   "ENOSPC",
	"sparing":     "throttle",
	"survival":    "shared map",
	"survivor":    "shared map",
	"unkept":      "unshared",
	"whoever":     "a caller that, any user that",
	"whosoever":   "a caller that",
}

// replacedNames are identifiers that are gone. Their words are in use elsewhere.
var replacedNames = regexp.MustCompile(
	`\b(askLimit|askServing|bellStroke|firstWipe|goOn|heldGuests|holdUp|hangUp|keepPin|keepReleasing|` +
		`letGo|letPinGo|lookAfter|lookOut|noteIsGone|readMail|releaseHeld|remoteList|turnAway|waitQuiet|wakeQuiet|wipeBlocks)\b`)

// words splits text into words: also identifiers at each capital letter.
var words = regexp.MustCompile(`[A-Z]?[a-z]+|[A-Z]+`)

// TestReplacedWords looks at all text that git has, but for this file and the word lists of tests.
func TestReplacedWords(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "ls-files", "*.go", "*.md", "*.s", "*.sh",
		"Makefile", "cmd/cowblk/testdata/*.txt").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 100 {
		t.Fatalf("git lists %d files only", len(files))
	}
	found := 0
	for _, name := range files {
		if name == "integration/lint/words_test.go" {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range strings.Split(string(text), "\n") {
			if w := replacedNames.FindString(line); w != "" {
				t.Errorf("%s:%d: %s is the name of something that has another one now", name, n+1,
					w)
				found++
			}
			for _, w := range words.FindAllString(line, -1) {
				if use := replaced[strings.ToLower(w)]; use != "" {
					t.Errorf("%s:%d: %q: say %s", name, n+1, w, use)
					found++
				}
			}
		}
	}
	if found > 0 {
		t.Logf("%d words", found)
	}
}
