package test

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Texts returns a function that compares the texts of errors with those in the file testdata/file,
// by name: tests assert sentinels, and a change of a text shows in the file alone. With
// COWBLK_UPDATE_SCRIPTS=1 those of the names that occur are written. Directories of tests appear as
// DIR, this process as PID. The function may be called concurrently. No error has no text.
func Texts(t testing.TB, file string) func(t testing.TB, name string, err error) {
	t.Helper()
	path := filepath.Join("testdata", file)
	update := os.Getenv("COWBLK_UPDATE_SCRIPTS") == "1"
	golden := readTexts(t, path, update)
	found := map[string]string{}
	var mu sync.Mutex
	if update {
		t.Cleanup(func() { writeTexts(t, path, found) })
	}
	return func(t testing.TB, name string, err error) {
		t.Helper()
		text := ""
		if err != nil {
			text = strings.ReplaceAll(err.Error(), "\n", `\n`)
			text = thisProcess.ReplaceAllString(testDir.ReplaceAllString(text, "DIR"),
				"process PID")
		}
		mu.Lock()
		defer mu.Unlock()
		if text != "" {
			found[name] = text
		}
		if !update && golden[name] != text {
			t.Errorf("%s: %s\nhas %q\nfound %q", path, name, golden[name], text)
		}
	}
}

var (
	testDir     = regexp.MustCompile(regexp.QuoteMeta(os.TempDir()) + `/Test[^/ ]*/\d+`)
	thisProcess = regexp.MustCompile(fmt.Sprintf(`\bprocess %d\b`, os.Getpid()))
)

// readTexts reads lines of the form NAME => TEXT.
func readTexts(t testing.TB, path string, mayMiss bool) map[string]string {
	t.Helper()
	texts := map[string]string{}
	f, err := os.Open(path)
	if err != nil && mayMiss {
		return texts
	}
	Must(t, err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, text, _ := strings.Cut(s.Text(), " => ")
		texts[name] = text
	}
	return texts
}

func writeTexts(t testing.TB, path string, texts map[string]string) {
	t.Helper()
	var b strings.Builder
	all := readTexts(t, path, true)
	maps.Copy(all, texts)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s => %s\n", name, all[name])
	}
	Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	Must(t, os.WriteFile(path, []byte(b.String()), 0o644))
}
