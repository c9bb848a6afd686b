package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// The owned size of a served disk is the daemon's answer, flushed or not. If the daemon does not
// answer, it is the files' value, marked as such.
func TestOwnedOfServedDisks(t *testing.T) {
	dir := storeWith(t, "1M", "vm1", "vm2")
	p, f := startServing(t, dir, "vm1")
	p2, f2 := startServing(t, dir, "vm2")
	for i, f := range []interface {
		WriteAt([]byte, int64) (int, error)
	}{f.Driver(0), f2.Driver(0)} {
		for block := range 3 + i {
			test.Must(t, test.Err(f.WriteAt(pattern(byte(block), 4096), int64(block)*8192)))
		}
	}
	owned := func() (owns map[string]int64, from map[string]string) {
		t.Helper()
		var all []listEntry
		test.Must(t, json.Unmarshal([]byte(command(t, dir, "list", "--json")), &all))
		owns, from = map[string]int64{}, map[string]string{}
		for _, l := range all {
			owns[l.Name], from[l.Name] = l.Owns, l.OwnsFrom
		}
		var nodes []store.Node
		test.Must(t, json.Unmarshal([]byte(command(t, dir, "tree", "--json")), &nodes))
		for _, n := range nodes {
			if n.Kind == store.KindDisk && (n.Usage.Owned != owns[n.Name] ||
				n.Usage.Source != from[n.Name] || n.Usage.Blocks != uint64(owns[n.Name])/4096) {
				t.Errorf("tree: %+v, list: %d bytes, %s", n.Usage, owns[n.Name], from[n.Name])
			}
		}
		return owns, from
	}
	owns, from := owned()
	if owns["vm1"] != 3*4096 || owns["vm2"] != 4*4096 || from["vm1"] != store.SourceProcess ||
		from["vm2"] != store.SourceProcess {
		t.Errorf("owned %v, from %v", owns, from)
	}
	if text := command(t, dir, "list"); !strings.Contains(text, "12 KiB") || !strings.Contains(text,
		"16 KiB") {
		t.Errorf("list:\n%s", text)
	}
	test.Must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	owns, from = owned()
	if from["vm1"] != store.SourceMap || from["vm2"] != store.SourceProcess ||
		owns["vm2"] != 4*4096 {
		t.Errorf("while one does not answer: owned %v, from %v", owns, from)
	}
	if text := command(t, dir, "list"); !strings.Contains(text, "≥ ") {
		t.Errorf("list:\n%s", text)
	}
	test.Must(t, p.cmd.Process.Signal(syscall.SIGCONT))
	p.end(t)
	p2.end(t)
	if owns, from = owned(); owns["vm1"] != 3*4096 || from["vm1"] != store.SourceHeader {
		t.Errorf("stopped: owned %v, from %v", owns, from)
	}
}

func TestInfoOfTag(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	s.builtin([]string{"write", "vm1", "0", "4096"})
	s.command("cowblk promote vm1 --tag t1")
	s.command("cowblk create vm2 --from vm1@t1 --size 2M")
	var info tagInfo
	test.Must(t, json.Unmarshal([]byte(s.command("cowblk info vm1@t1 --json")), &info))
	if info.Kind != "tag" || info.Name != "vm1@t1" || info.Size != 1<<20 || info.Depth != 1 ||
		info.Usage.Blocks != 1 || strings.Join(info.SharedBy, ",") != "vm2" || info.Sealed == nil {
		t.Errorf("%+v", info)
	}
	for line, want := range map[string]string{
		"info vm2@t1": "1.0 MiB (1,048,576 bytes)", "info vm1@nosuch": "exit 3",
		"info nosuch@t1": "exit 3", "info vm1@": "exit 2", "info vm1@a@b": "exit 2",
		"info @": "exit 2",
	} {
		if out := s.command("cowblk " + line); !strings.Contains(out, want) {
			t.Errorf("%s: %s, expected %q", line, out, want)
		}
	}
}

// With --json every error is one JSON object on standard error, also one that precedes the option.
func TestErrorsAsJSON(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	for line, code := range map[string]int{
		"info nosuch --json": 3, "--json info nosuch": 3, "list --nosuch --json": 2,
		"nosuch --json": 2, "create vm1 --size 1M --json": 6,
		"create vm2 --size 1,5G --json=true": 2, "rm vm1 --json": 9, "create --json": 2,
		"stop a/b --json": 2,
	} {
		var out, errOut bytes.Buffer
		test.Equal(t, run(split("x " + line)[1:], s.app(&out, &errOut)), code, "exit", line)
		var e struct {
			Error    string `json:"error"`
			ExitCode int    `json:"exit-code"`
		}
		if err := json.Unmarshal(errOut.Bytes(), &e); err != nil || e.Error == "" ||
			e.ExitCode != code || strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("%s: %v: %s", line, err, &errOut)
		}
	}
	var errOut bytes.Buffer
	if run([]string{"run", "nosuch", "--", "--json"}, s.app(&errOut, &errOut)); strings.HasPrefix(
		errOut.String(), "{") {
		t.Errorf("--json of QEMU's arguments: %s", &errOut)
	}
}

// Commands in messages use the store of the command line and can be pasted.
func TestAdviceNamesTheStore(t *testing.T) {
	for _, name := range []string{"plain", "a b", "it's", "-dash", "new\nline", "$(touch x)`y`"} {
		dir := t.TempDir() + "/" + name
		var out, errOut bytes.Buffer
		t.Chdir(t.TempDir())
		a := newApp()
		a.in, a.out, a.err, a.terminal = strings.NewReader(""), &out, &errOut,
			func(any) bool { return false }
		run([]string{"--store", dir, "create", "vm1", "--size", "1M"}, a)
		_, advice, ok := strings.Cut(strings.TrimSpace(out.String()), "next: ")
		advice, _, _ = strings.Cut(advice, ", or ")
		if !ok {
			t.Errorf("%q: %s%s", name, &out, &errOut)
			continue
		}
		// A shell with a function of the program's name returns its arguments.
		got := shellArgs(t, advice)
		if want := []string{"--store", dir, "run", "vm1"}; strings.Join(got, "|") != strings.Join(
			want, "|") {
			t.Errorf("%q: advice %s is read as %q", name, advice, got)
		}
	}
}

// Paths in errors are shell words, whatever they contain.
func TestAdviceQuotesPaths(t *testing.T) {
	for _, name := range []string{"plain.raw", "a b.raw", "it's", "-dash", "new\nline",
		"$(touch x)`y`", "\xff", "größe", "*?"} {
		s := newScript(t)
		path := filepath.Join(s.dir, name)
		test.Must(t, os.WriteFile(path, append([]byte("\x1f\x8b\x08"), make([]byte, 1021)...),
			0o644))
		var errOut bytes.Buffer
		if code := run([]string{"import", path, "image"},
			s.app(io.Discard, &errOut)); code == exitOK {
			t.Errorf("%q was accepted", name)
		}
		_, advice, ok := strings.Cut(errOut.String(), "gzip -dc")
		advice, _, redirected := strings.Cut(advice, " >")
		if !ok || !redirected {
			t.Errorf("%q: %s", name, &errOut)
			continue
		}
		if got := shellArgs(t, "cowblk"+advice); len(got) != 1 || got[0] != path {
			t.Errorf("%q: advice%s is read as %q", name, advice, got)
		}
	}
}

// Output of libraries through package log has the destination and format of this program's log.
func TestNoRawLibraryLines(t *testing.T) {
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	s := newScript(t)
	for _, debug := range []string{"", "--debug"} {
		var errOut bytes.Buffer
		if code := run(split("list "+debug), s.app(io.Discard, &errOut)); code != exitOK {
			t.Fatalf("exit %d: %s", code, &errOut)
		}
		errOut.Reset()
		log.Print("library: WARNING: odd")
		if got := errOut.String(); debug == "" && got != "" || debug != "" && !strings.Contains(got,
			`level=INFO msg="library: WARNING: odd"`) {
			t.Errorf("%q: %s", debug, got)
		}
	}
}
