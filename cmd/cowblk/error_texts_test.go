package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// Help or completion for an unknown command is an error.
func TestUnknownHelpTopics(t *testing.T) {
	for _, line := range []string{"help nosuch", "help rm nosuch", "help completion nosuch",
		"completion nosuch", "completion nosuch bash"} {
		if code, text := runOutcome(t.TempDir(), strings.Fields(line)...); code != exitUsage ||
			!strings.Contains(text, "nosuch") || strings.Contains(text, "Usage:") {
			t.Errorf("%s: exit %d: %s", line, code, text)
		}
	}
	for _, line := range []string{"help", "help rm", "help remove", "help exit-codes",
		"help completion bash", "completion", "completion bash", "help help"} {
		if code, text := runOutcome(t.TempDir(), strings.Fields(line)...); code != exitOK ||
			text == "" {
			t.Errorf("%s: exit %d: %s", line, code, text)
		}
	}
}

// A process that does not answer counts as not stopped in time, whatever the limit.
func TestStopOfASuspendedProcess(t *testing.T) {
	dir := storeWith(t, "1M", "d")
	p, _ := startServing(t, dir, "d")
	test.Must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	defer p.cmd.Process.Signal(syscall.SIGCONT)
	for _, limit := range []string{"100ms", "1s"} {
		if code, text := outcomeOf(t, dir, "stop", "d", "--timeout", limit); code != exitTimeout ||
			!strings.Contains(text, "does not answer") {
			t.Errorf("%s: exit %d: %s", limit, code, text)
		}
	}
	// A signal ends a longer wait.
	q := start(t, dir, nil, "stop", "d", "--timeout", "1h")
	test.Eventually(t, "stop has connected",
		func() bool { return opensSocket(q.cmd.Process.Pid) })
	test.Must(t, q.cmd.Process.Signal(os.Interrupt))
	if code := q.outcome(t); code != exitInterrupted {
		t.Errorf("interrupted: exit %d: %s", code, q.log.String())
	}
}

// opensSocket reports whether a process has a socket open.
func opensSocket(pid int) bool {
	links, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "socket:") {
			return true
		}
	}
	return false
}

// The name of a store, file or socket cannot begin a line of a message.
func TestPathsOnOneLine(t *testing.T) {
	const forged = "cowblk: all is lost"
	dir := filepath.Join(t.TempDir(), "e\n"+forged)
	expectOutput(t, dir, exitNotFound, "not found in store", "info", "x")
	expectOutput(t, dir, exitOK, "", "create", "d", "--size", "1M")
	for _, line := range []string{"info x", "list x", "tree x", "serve x", "create d --size 1M",
		"list", "tree", "rm --yes x", "import nosuch i", "export d@t --listen unix:n", "check x",
		"check d", "stop x"} {
		_, text := runOutcome(dir, strings.Fields(line)...)
		checkNoForgedLine(t, line, text, forged)
	}
	file := filepath.Join(t.TempDir(), "f\n"+forged)
	for _, args := range [][]string{{"import", file, "i"}, {"create", "n", "--base", file},
		{"serve", "--fd", "99", "--blk-file", file}} {
		_, text := runOutcome(t.TempDir(), args...)
		checkNoForgedLine(t, args[0], text, forged)
	}
	v := store.Serving{PID: 1, Socket: "/run/s\n" + forged}
	checkNoForgedLine(t, "a lock", v.String(), forged)
	// A store that cannot be opened.
	test.Must(t, os.Chmod(filepath.Join(dir, "lock"), 0o600))
	test.Must(t, os.RemoveAll(filepath.Join(dir, "disks")))
	test.Must(t, os.WriteFile(filepath.Join(dir, "disks"), nil, 0o600))
	for _, line := range []string{"list", "info d", "create e --size 1M", "rm --yes d"} {
		_, text := runOutcome(dir, strings.Fields(line)...)
		checkNoForgedLine(t, line, text, forged)
	}
}

func checkNoForgedLine(t *testing.T, what, text, forged string) {
	t.Helper()
	for line := range bytes.Lines([]byte(text)) {
		if strings.HasPrefix(strings.TrimSpace(string(line)), forged) {
			t.Errorf("%s: a forged line:\n%s", what, text)
		}
	}
}

// An event name with one typing mistake is refused. An unknown event name is accepted.
func TestMisspelledEvents(t *testing.T) {
	for _, name := range []string{"SHUTDWON", "SHUTDOW", "SHUTDOWNN", "shutdawn", "RESTE",
		"GUEST-PANICED", "SOTP"} {
		expectOutput(t, t.TempDir(), exitUsage, "did you mean", "serve", "d", "--qmp", "unix:q",
			"--promote-on", name)
	}
	for _, name := range []string{"SHUTDOWN", "stop", "guest-panicked", "NOBODY_KNOWS"} {
		expectOutput(t, t.TempDir(), exitNotFound, "not found", "serve", "d", "--qmp", "unix:q",
			"--promote-on", name)
	}
	code, text := runOutcome(t.TempDir(), "serve", "d", "--socket-group", "nosuchgroup")
	if code != exitUsage || strings.Contains(text, "unknown group") || !strings.Contains(text,
		"none of that name") {
		t.Errorf("exit %d: %s", code, text)
	}
}

// Help whose output is lost does not report that the command has done its work.
func TestHelpOutputIsLost(t *testing.T) {
	for _, line := range []string{"create d --size 1M --help", "rm d -h", "help create",
		"import --help"} {
		out, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		test.Must(t, err)
		defer out.Close()
		var errOut bytes.Buffer
		if code := run(append([]string{"--store", t.TempDir()}, strings.Fields(line)...),
			testApp(out, &errOut)); code != exitFailure || strings.Contains(errOut.String(),
			"has done") {
			t.Errorf("%s: exit %d: %s", line, code, &errOut)
		}
	}
}

// A path that is too long for a socket gives the same error from every command.
func TestSocketPathsTooLong(t *testing.T) {
	dir := t.TempDir()
	command(t, dir, "create", "d", "--size", "1M")
	command(t, dir, "promote", "d", "--tag", "t")
	long := "/tmp/" + strings.Repeat("x", 110)
	for _, args := range [][]string{{"serve", "d", "--socket-path", long},
		{"export", "d@t", "--listen", "unix:" + long}, {"bench", long}} {
		expectOutput(t, dir, exitUsage, "the path has 115 bytes, at most 107 are possible", args...)
	}
}

// A lock that is a symbolic link is refused with an advised command, which works.
func TestLockIsSymlink(t *testing.T) {
	for _, words := range [][]string{{"rm", "--yes", "d"}, {"rm", "--damaged", "--yes", "d"},
		{"serve", "d"}, {"promote", "d"}, {"stop", "d"}} {
		dir := t.TempDir()
		command(t, dir, "create", "d", "--size", "1M")
		if words[1] == "--damaged" {
			test.Must(t, os.Remove(filepath.Join(dir, "disks/d/disk.json")))
		}
		lock := filepath.Join(dir, "disks/d/lock")
		test.Must(t, os.Remove(lock))
		test.Must(t, os.Symlink("/etc/passwd", lock))
		text := expectOutput(t, dir, exitRefused, "mv -n ", words...)
		_, advice, _ := strings.Cut(text, "another name: ")
		advice, _, _ = strings.Cut(advice, "\n")
		runTool(t, "sh", "-c", advice)
		if words[0] != "serve" {
			expectOutput(t, dir, exitOK, "", words...)
		}
	}
}

// An error is printed once.
func TestErrorIsPrintedOnce(t *testing.T) {
	if code, text := runOutcome("/", "create", "x", "--size", "1M"); code != exitUsage ||
		strings.Count(text, "store /:") != 1 {
		t.Errorf("exit %d: %s", code, text)
	}
	out, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	test.Must(t, err)
	defer out.Close()
	var errOut bytes.Buffer
	if code := run([]string{"bench", "--null", "--time", "50ms", "--warmup", "0"},
		testApp(out, &errOut)); code != exitFailure || strings.Count(errOut.String(),
		"no space left") != 1 {
		t.Errorf("exit %d: %s", code, &errOut)
	}
}
