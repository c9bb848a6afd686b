package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mattn/go-runewidth"

	"cowblk/internal/test"
)

// A table fits the terminal, whatever it contains. Other outputs get all of it, in columns.
func TestTablesFitTerminals(t *testing.T) {
	s := newScript(t)
	base := "日本語のベースイメージ-" + strings.Repeat("長", 30) + ".raw"
	test.Must(t, os.WriteFile(base, randomBytes(1, 1<<20), 0o644))
	long := strings.Repeat("n", 64)
	for _, line := range []string{
		"create " + long + " --base " + base, "create vm1 --base " + base, "promote vm1 --tag " +
			strings.Repeat("t", 64), "create e --size 1M",
	} {
		if out := s.command("cowblk " + line); strings.Contains(out, "exit ") {
			t.Fatal(out)
		}
	}
	s.builtin([]string{"hold", "vm1"})
	for _, command := range []string{"list", "tree"} {
		for _, width := range []int{1, 8, 20, 28, 40, 60, 79, 80, 81, 120, 300, 0} {
			var out, errOut bytes.Buffer
			a := s.app(&out, &errOut)
			a.width = func(stream any) int {
				if stream != any(&out) {
					t.Errorf("width of %T was asked for", stream)
				}
				return width
			}
			if code := run([]string{command}, a); code != exitOK {
				t.Fatalf("exit %d: %s", code, &errOut)
			}
			least := max(width, minColumn)
			for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
				if w := runewidth.StringWidth(line); width > 0 && w > least {
					t.Errorf("%s: %d columns on a terminal of %d: %s", command, w, width, line)
				}
			}
			all := strings.Contains(out.String(), long) && strings.Contains(out.String(), base)
			if width == 0 && !all || width == 80 &&
				(all || !strings.Contains(out.String(), "served by")) {
				t.Errorf("%s, width %d:\n%s", command, width, &out)
			}
			if width == 80 || width == 0 {
				checkAligned(t, out.String(), "STATE")
			}
		}
	}
}

// checkAligned checks that the last column begins in one terminal column, whatever is wide before
// it.
func checkAligned(t *testing.T, text, heading string) {
	t.Helper()
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	before, _, ok := strings.Cut(lines[0], heading)
	if !ok {
		t.Errorf("no column %s in %s", heading, lines[0])
	}
	at := runewidth.StringWidth(before)
	for _, line := range lines[1:] {
		if w := runewidth.StringWidth(line); w > at &&
			runewidth.StringWidth(runewidth.Truncate(line, at, "")) == at &&
			!strings.HasSuffix(runewidth.Truncate(line, at, ""), "  ") {
			t.Errorf("the column %s is not at %d in\n%s\n%s", heading, at, lines[0], line)
		}
	}
}

// A name or path cannot move a terminal's cursor.
func TestTablesAreHarmless(t *testing.T) {
	for in, want := range map[string]string{"a\nb\tc": "a b c", "\x1b[2J": "\uFFFD[2J",
		"\xff": "\uFFFD", "\u202edws": "\uFFFDdws", "日本": "日本", "a\u0301": "a\u0301"} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// The size of a tree, as text and as JSON, grows with the number of nodes, not with nodes times
// depth.
func TestTreeIsLinear(t *testing.T) {
	size := map[string][2]int{}
	for _, forks := range []bool{false, true} {
		for i, tags := range []int{40, 80} {
			s := newScript(t)
			s.command("cowblk create vm --size 64K")
			for n := range tags {
				s.command(fmt.Sprintf("cowblk promote vm --tag t%03d", n))
				if forks {
					s.command(fmt.Sprintf("cowblk create c%03d --from vm@t%03d", n, n))
				}
			}
			for _, format := range []string{"", " --json"} {
				key := fmt.Sprintf("forks %t%s", forks, format)
				now := size[key]
				now[i] = len(s.command("cowblk tree" + format))
				size[key] = now
			}
		}
	}
	for key, n := range size {
		if n[1] > n[0]*21/10 {
			t.Errorf("%s: %d bytes with 40 tags, %d with 80", key, n[0], n[1])
		}
	}
}

// A command whose output is lost fails, and says why.
func TestLostOutput(t *testing.T) {
	dir := shortDir(t)
	golden := filepath.Join(t.TempDir(), "golden.raw")
	test.Must(t, os.WriteFile(golden, randomBytes(1, 1<<20), 0o644))
	command(t, dir, "import", golden, "img")
	command(t, dir, "create", "vm1", "--from", "img")
	command(t, dir, "promote", "vm1", "--tag", "t")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	test.Must(t, err)
	defer full.Close()
	for _, args := range [][]string{
		{}, {"--help"}, {"--version"}, {"version"}, {"help"}, {"help", "exit-codes"},
		{"create", "--help"}, {"completion", "bash"}, {"completion", "zsh"},
		{"completion", "fish"}, {"completion", "powershell"}, {"__complete", "info", ""},
		{"list"}, {"tree"}, {"tree", "vm1"}, {"info", "vm1"}, {"info", "vm1@t"}, {"info", "img"},
		{"check"}, {"check", "vm1"}, {"check", "--repair"},
		{"qemu-args", "vm1"}, {"xml", "vm1"}, {"xml", "vm1", "--domain"}, {"xml", "vm1", "--disk"},
		{"serve", "--print-capabilities"},
		{"stop", "vm1"}, {"trust-base", "vm1"}, {"promote", "vm1"}, {"create", "new", "--size",
			"1M"}, {"import", golden, "img2"},
		{"rollback", "vm1@t", "--yes", "--discard-tags"}, {"rm", "--yes", "vm1"},
	} {
		for _, more := range [][]string{nil, {"--json"}} {
			args := append(args, more...)
			if args == nil {
				args = []string{}
			}
			var errOut bytes.Buffer
			a := newScript(t).app(full, &errOut)
			code := run(append([]string{"--store", dir}, args...), a)
			if code == exitOK || code == exitInterrupted {
				t.Errorf("%v: exit %d", args, code)
			}
			if !strings.Contains(errOut.String(), "no space left on device") &&
				!strings.Contains(errOut.String(), "not found") &&
				!strings.Contains(errOut.String(), "already exists") {
				t.Errorf("%v: %s", args, &errOut)
			}
			if strings.Count(errOut.String(), "no space left on device") > 1 {
				t.Errorf("%v says it twice: %s", args, &errOut)
			}
		}
	}
}

// The exit codes of check describe the store; lost output has another code.
func TestLostOutputOfCheck(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	test.Must(t, err)
	defer full.Close()
	for range 2 {
		for _, line := range [][]string{{"check"}, {"check", "--json"}} {
			var errOut bytes.Buffer
			if code := run(line, s.app(full, &errOut)); code != checkFailed {
				t.Errorf("%v: exit %d: %s", line, code, &errOut)
			}
		}
		s.builtin([]string{"damage", "vm1"})
	}
}
