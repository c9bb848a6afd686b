package daemon

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"cowblk/backend/takeover"
	"cowblk/internal/test"
)

// The table of access has every registered command and no other, and docs/control.md lists them
// with those that may give them.
func TestCommandsAreListed(t *testing.T) {
	d := start(t, newStore(t, nil, "a"), Options{}, "a")
	var registered []struct{ Name string }
	test.Must(t, d.control().Run(t.Context(), "query-commands", struct{}{}, &registered))
	want := map[string]string{takeover.Command: "owner"} // query-commands does not list it
	for _, c := range registered {
		want[c.Name] = "owner"
	}
	for _, own := range []string{"qmp_capabilities", "query-version", "query-commands",
		"cow-set-events", "cow-last-error"} { // of package control, for every client
		want[own] = "all"
	}
	for name, may := range groupMay {
		if want[name] != "owner" {
			t.Errorf("groupMay has %s, which is not registered", name)
		} else if may {
			want[name] = "owner, group"
		}
	}
	for name, who := range want {
		if _, ok := groupMay[name]; !ok && who == "owner" {
			t.Errorf("groupMay does not say whether the group may give %s", name)
		}
	}
	document, err := os.ReadFile("../../docs/control.md")
	test.Must(t, err)
	found := map[string]string{}
	for _, row := range regexp.MustCompile(
		"(?m)^\\| `([a-z_-]+)` \\| ([a-z, ]+) \\| (?:yes|no) \\|").
		FindAllStringSubmatch(string(document), -1) {
		found[row[1]] = row[2]
	}
	if !maps.Equal(found, want) {
		t.Errorf("docs/control.md lists\n%v\nexpected\n%v", found, want)
	}
}

// docs/control.md lists every event that this package emits.
func TestEventsAreListed(t *testing.T) {
	document, err := os.ReadFile("../../docs/control.md")
	test.Must(t, err)
	files, err := filepath.Glob("*.go")
	test.Must(t, err)
	emitted := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		test.Must(t, err)
		for _, m := range regexp.MustCompile(`\.emit\("(COW_[A-Z_]+)"`).FindAllSubmatch(text, -1) {
			emitted[string(m[1])] = true
		}
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(COW_[A-Z_]+)` \\|").FindAllSubmatch(document,
		-1) {
		listed[string(m[1])] = true
	}
	if !maps.Equal(listed, emitted) {
		t.Errorf("docs/control.md lists the events %v, emitted are %v",
			slices.Sorted(maps.Keys(listed)), slices.Sorted(maps.Keys(emitted)))
	}
}
