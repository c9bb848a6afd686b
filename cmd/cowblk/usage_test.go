package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cowblk/internal/test"
)

// runOutcome runs a command line on the store dir, without a terminal, and returns its exit code
// and output.
func runOutcome(dir string, args ...string) (code int, text string) {
	var out strings.Builder
	code = run(append([]string{"--store", dir}, args...), testApp(&out, &out))
	return code, out.String()
}

// expectOutput runs a command line that must end with code and print says.
func expectOutput(t *testing.T, dir string, code int, says string, args ...string) string {
	t.Helper()
	got, text := runOutcome(dir, args...)
	if got != code || !strings.Contains(text, says) {
		t.Errorf("%q: exit %d, want %d with %q:\n%s", args, got, code, says, text)
	}
	return text
}

// A guest's address without --quiesce is refused: the tag would be of a running guest.
func TestPromoteAddressNeedsQuiesce(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	for _, args := range [][]string{
		{"--agent", "unix:/nowhere"}, {"--qmp", "unix:/nowhere"}, {"--libvirt", "qemu:///system"},
		{"--domain", "vm1"},
		{"--libvirt", "qemu:///system", "--domain", "vm1"}, {"--agent", "vsock:3:1", "--qmp",
			"unix:/nowhere", "--tag", "x"},
	} {
		expectOutput(t, dir, exitUsage, "--quiesce", append([]string{"promote", "vm1"}, args...)...)
	}
	if text := expectOutput(t, dir, 0, "vm1", "info", "vm1"); strings.Contains(text, "vm1@") {
		t.Errorf("a tag was made:\n%s", text)
	}
	expectOutput(t, dir, 0, "sealed", "promote", "vm1", "--quiesce", "none", "--agent",
		"unix:/nowhere")
}

// Two promotions within one second get different tags.
func TestPromoteTwiceInOneSecond(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	expectOutput(t, dir, 0, "", "create", "vm2", "--size", "1M")
	for range 3 {
		expectOutput(t, dir, 0, "vm1 now has", "promote", "vm1")
		expectOutput(t, dir, 0, "vm2 now has", "promote", "vm1", "vm2")
	}
	expectOutput(t, dir, exitExists, "", "promote", "vm1", "--tag", tagOf(t, dir, "vm1"))
}

// tagOf returns one of the tags of a disk.
func tagOf(t *testing.T, dir, disk string) string {
	t.Helper()
	_, text := runOutcome(dir, "info", disk)
	for _, word := range strings.Fields(text) {
		if strings.HasPrefix(word, "@20") && strings.Contains(word, "T") && strings.Contains(word,
			"Z") {
			return strings.TrimPrefix(word, "@")
		}
	}
	t.Fatalf("no tag in:\n%s", text)
	return ""
}

// Where a disk is expected, NAME@TAG is refused as a tag, and the advice does not name the whole
// disk.
func TestTagWhereDiskIsExpected(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	expectOutput(t, dir, 0, "", "promote", "vm1", "--tag", "t1")
	for _, args := range [][]string{
		{"check", "vm1@t1"}, {"rm", "--yes", "vm1@t1"}, {"promote", "vm1@t1"},
		{"create", "vm2@t1", "--size", "1M"}, {"serve", "vm1@t1"},
		{"stop", "vm1@t1"}, {"resume", "vm1@t1"}, {"xml", "vm1@t1"}, {"tree", "vm1@t1"},
		{"watch", "vm1@t1"}, {"import", "/dev/null", "vm1@t1"},
	} {
		expectOutput(t, dir, exitUsage, "a tag of a disk", args...)
	}
	expectOutput(t, dir, exitUsage, "character '@'", "promote", "vm1", "--tag", "a@b")
	expectOutput(t, dir, exitUsage, "character 'é' at position 1", "create", "é", "--size", "1M")
	expectOutput(t, dir, exitUsage, "byte 0xff at position 2", "create", "a\xffb", "--size", "1M")
}

// A takeover of disks that are not served by one process is refused as such.
func TestTakeoverOfSeveralProcesses(t *testing.T) {
	dir := shortDir(t)
	for _, name := range []string{"vm1", "vm2"} {
		expectOutput(t, dir, 0, "", "create", name, "--size", "1M")
	}
	p := start(t, dir, nil, "serve", "vm1")
	dial(t, filepath.Join(dir, "run", "vm1.sock"))
	for _, args := range [][]string{{"vm1", "vm2"}, {"vm2", "vm1"}} {
		text := expectOutput(t, dir, exitInUse, `disk "vm2" is stopped`,
			append([]string{"serve", "--takeover"}, args...)...)
		if !strings.Contains(text, "takeover") || strings.Contains(text, "promote") {
			t.Errorf("takeover: %s", text)
		}
		expectOutput(t, dir, exitInUse, "promote them one by one", append([]string{"promote"},
			args...)...)
	}
	expectOutput(t, dir, exitUsage, "--quiesce", "promote", "vm1", "--agent", "unix:/nowhere")
	p.end(t)
}

// A disk without a manifest is listed as damaged, and rm --damaged frees its name.
func TestRemoveDamaged(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	test.Must(t, os.Remove(filepath.Join(dir, "disks", "vm1", "disk.json")))
	code, text := runOutcome(dir, "list")
	if code == 0 || !strings.Contains(text, "vm1") || !strings.Contains(text, "damaged") ||
		strings.Contains(text, "nothing") {
		t.Errorf("list: exit %d\n%s", code, text)
	}
	expectOutput(t, dir, code, `"name": "vm1"`, "list", "--json")
	expectOutput(t, dir, exitRefused, "manifest", "info", "vm1")
	expectOutput(t, dir, exitExists, "", "create", "vm1", "--size", "1M")
	expectOutput(t, dir, exitRefused, "manifest", "rm", "--yes", "vm1")
	expectOutput(t, dir, exitUnconfirmed, "--yes", "rm", "--damaged", "vm1")
	expectOutput(t, dir, 0, "kept", "rm", "--damaged", "--yes", "vm1")
	expectOutput(t, dir, exitNotFound, "not found", "rm", "--damaged", "--yes", "vm1")
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	expectOutput(t, dir, exitUsage, "leave --damaged out", "rm", "--damaged", "--yes", "vm1")
	expectOutput(t, dir, exitNotFound, "not found", "rm", "--damaged", "--yes", "nosuch")
}

// Errors about option values are in plain words, not in those of Go's packages.
func TestOptionValuesInWords(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	for _, tt := range []struct {
		says string
		args []string
	}{
		{"expected a whole number, 0 or more", []string{"xml", "vm1", "--vcpus", "-1"}},
		{"expected a whole number, 0 or more", []string{"xml", "vm1", "--vcpus", "two"}},
		{"too large", []string{"xml", "vm1", "--vcpus", "99999999999999999999"}},
		{"expected a whole number", []string{"serve", "vm1", "--keep", "a\nb"}},
		{"expected true or false", []string{"list", "--json=perhaps"}},
		{"expected a time", []string{"watch", "--timeout", "10"}},
		{"expected a time", []string{"watch", "--timeout", "soon"}},
		{"expected a time", []string{"watch", "--timeout", "3 weeks"}},
		{"--promote-on", []string{"serve", "vm1", "--keep", "3"}},
		{"--promote-on", []string{"serve", "vm1", "--promote-min-interval", "3s"}},
		{"such as vda", []string{"xml", "vm1", "--target", `a"b`}},
		{"such as vda", []string{"xml", "vm1", "--target", "vda9999"}},
		{"has no default", []string{"attach", "vm1", "--qmp", ""}},
		{"has no default", []string{"detach", "vm1", "--qmp", " "}},
		{"leave it out for the default", []string{"detach", "vm1", "--qmp", "unix:/x", "--id", ""}},
	} {
		text := expectOutput(t, dir, exitUsage, tt.says, tt.args...)
		if strings.Contains(text, "strconv") || strings.Contains(text, "time: ") {
			t.Errorf("%q: %s", tt.args, text)
		}
	}
	here, err := os.Getwd()
	test.Must(t, err)
	expectOutput(t, dir, 0, `path="`+here+`/rel.sock"`, "xml", "vm1", "--socket-path", "rel.sock")
	expectOutput(t, dir, 0, here+"/rel.sock", "qemu-args", "vm1", "--socket-path", "rel.sock")
}

// Time limits and interruptions are reported in words.
func TestLimitsInWords(t *testing.T) {
	a := &app{}
	if text := a.errorText(fmt.Errorf("disk: %w",
		context.DeadlineExceeded)); text != "disk: no answer in time" {
		t.Error(text)
	}
}

// The name of a file reaches the terminal without control characters.
func TestNamesAreNoCommandsToTerminal(t *testing.T) {
	dir := shortDir(t)
	base := filepath.Join(t.TempDir(), "esc\x1b[31m.raw")
	test.Must(t, os.WriteFile(base, make([]byte, 4096), 0o600))
	expectOutput(t, dir, 0, "", "create", "vm1", "--base", base)
	expectOutput(t, dir, 0, "", "create", "vm2", "--base", base)
	for _, args := range [][]string{{"list"}, {"tree"}, {"info", "vm1"}, {"check"},
		{"rm", "--yes", "vm1"}} {
		if text := expectOutput(t, dir, 0, "", args...); strings.Contains(text, "\x1b") {
			t.Errorf("%q: %q", args, text)
		}
	}
}

// With --json resume prints the result for each disk.
func TestResumeJSON(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	expectOutput(t, dir, 0, `"result": "has no record of a guest that holds still"`, "--json",
		"resume", "--forget", "vm1")
}

// A command that has changed something says so if its output is lost; others do not.
func TestSuccessWithLostOutput(t *testing.T) {
	dir := shortDir(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("no /dev/full: %v", err)
	}
	defer full.Close()
	const done = "has succeeded"
	for _, tt := range []struct {
		done bool
		args []string
	}{
		{true, []string{"create", "vm1", "--size", "1M"}},
		{true, []string{"--json", "create", "vm2", "--size", "1M"}},
		{true, []string{"promote", "vm1", "--tag", "t"}},
		{true, []string{"--json", "promote", "vm1", "--tag", "t2"}},
		{false, []string{"list"}},
		{false, []string{"--json", "list"}},
		{false, []string{"info", "vm1"}},
		{true, []string{"rm", "--yes", "vm1"}},
		{true, []string{"--json", "rm", "--yes", "vm2"}},
	} {
		var text strings.Builder
		code := run(append([]string{"--store", dir}, tt.args...), testApp(full, &text))
		if code != exitFailure || strings.Contains(text.String(), done) != tt.done ||
			!strings.Contains(text.String(), "standard output") {
			t.Errorf("%q: exit %d: %s", tt.args, code, &text)
		}
	}
	expectOutput(t, dir, 0, "nothing in store", "list")
}

// A value that an option cannot have is wrong usage, before a disk is opened.
func TestServeOptionsAreUsage(t *testing.T) {
	dir := shortDir(t)
	expectOutput(t, dir, 0, "", "create", "vm1", "--size", "1M")
	for _, args := range [][]string{
		{"--serial", strings.Repeat("x", 21)}, {"--serial", strings.Repeat("x", 30)},
		{"--socket-group", "no such group"}, {"--control-group", "no such group"},
		{"--control-group", "-1"}, {"--socket-group", "99999999999"},
		{"--socket-path", "/tmp/" + strings.Repeat("x", 103)},
		{"--socket-path", strings.Repeat("x", 107)},
	} {
		expectOutput(t, dir, exitUsage, args[0], append([]string{"serve", "vm1"}, args...)...)
	}
}
