package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// said runs a command line on the store dir, without a terminal, and returns its exit code and all that it said.
func said(dir string, args ...string) (code int, text string) {
	var out strings.Builder
	a := &app{in: strings.NewReader(""), out: &out, err: &out, getenv: func(string) string { return "" },
		terminal: func(any) bool { return false }, kvm: func() bool { return false }}
	code = run(append([]string{"--store", dir}, args...), a)
	return code, out.String()
}

// expect runs a command line that is to end with code and to say something.
func expect(t *testing.T, dir string, code int, says string, args ...string) string {
	t.Helper()
	got, text := said(dir, args...)
	if got != code || !strings.Contains(text, says) {
		t.Errorf("%q: exit %d, want %d with %q:\n%s", args, got, code, says, text)
	}
	return text
}

// A guest's address without a word on quiescing makes no tag: it would be one of a guest that ran on.
func TestPromoteAddressNeedsQuiesce(t *testing.T) {
	dir := shortDir(t)
	expect(t, dir, 0, "", "create", "vm1", "--size", "1M")
	for _, args := range [][]string{
		{"--agent", "unix:/nowhere"}, {"--qmp", "unix:/nowhere"}, {"--libvirt", "qemu:///system"}, {"--domain", "vm1"},
		{"--libvirt", "qemu:///system", "--domain", "vm1"}, {"--agent", "vsock:3:1", "--qmp", "unix:/nowhere", "--tag", "x"},
	} {
		expect(t, dir, exitUsage, "--quiesce", append([]string{"promote", "vm1"}, args...)...)
	}
	if text := expect(t, dir, 0, "vm1", "info", "vm1"); strings.Contains(text, "vm1@") {
		t.Errorf("a tag was made:\n%s", text)
	}
	expect(t, dir, 0, "sealed", "promote", "vm1", "--quiesce", "none", "--agent", "unix:/nowhere")
}

// Of two promotions within one second both get a tag.
func TestPromoteTwiceInOneSecond(t *testing.T) {
	dir := shortDir(t)
	expect(t, dir, 0, "", "create", "vm1", "--size", "1M")
	expect(t, dir, 0, "", "create", "vm2", "--size", "1M")
	for range 3 {
		expect(t, dir, 0, "vm1 now has", "promote", "vm1")
		expect(t, dir, 0, "vm2 now has", "promote", "vm1", "vm2")
	}
	expect(t, dir, exitExists, "", "promote", "vm1", "--tag", tagOf(t, dir, "vm1"))
}

// tagOf is one of the tags of a disk.
func tagOf(t *testing.T, dir, disk string) string {
	t.Helper()
	_, text := said(dir, "info", disk)
	for _, word := range strings.Fields(text) {
		if strings.HasPrefix(word, "@20") && strings.Contains(word, "T") && strings.Contains(word, "Z") {
			return strings.TrimPrefix(word, "@")
		}
	}
	t.Fatalf("no tag in:\n%s", text)
	return ""
}

// Where a disk is expected, NAME@TAG is told to be a tag, and nothing says to name the whole disk instead.
func TestTagWhereDiskIsExpected(t *testing.T) {
	dir := shortDir(t)
	expect(t, dir, 0, "", "create", "vm1", "--size", "1M")
	expect(t, dir, 0, "", "promote", "vm1", "--tag", "t1")
	for _, args := range [][]string{
		{"check", "vm1@t1"}, {"rm", "--yes", "vm1@t1"}, {"promote", "vm1@t1"}, {"create", "vm2@t1", "--size", "1M"}, {"serve", "vm1@t1"},
		{"stop", "vm1@t1"}, {"resume", "vm1@t1"}, {"xml", "vm1@t1"}, {"tree", "vm1@t1"}, {"watch", "vm1@t1"}, {"import", "/dev/null", "vm1@t1"},
	} {
		expect(t, dir, exitUsage, "a tag of a disk", args...)
	}
	expect(t, dir, exitUsage, "character '@'", "promote", "vm1", "--tag", "a@b")
	expect(t, dir, exitUsage, "character 'é' at position 1", "create", "é", "--size", "1M")
	expect(t, dir, exitUsage, "byte 0xff at position 2", "create", "a\xffb", "--size", "1M")
}

// A takeover of disks that one process does not serve is told as that.
func TestTakeoverOfDisksApart(t *testing.T) {
	dir := shortDir(t)
	for _, name := range []string{"vm1", "vm2"} {
		expect(t, dir, 0, "", "create", name, "--size", "1M")
	}
	p := start(t, dir, nil, "serve", "vm1")
	dial(t, filepath.Join(dir, "run", "vm1.sock"))
	for _, args := range [][]string{{"vm1", "vm2"}, {"vm2", "vm1"}} {
		text := expect(t, dir, exitInUse, `disk "vm2" is stopped`, append([]string{"serve", "--takeover"}, args...)...)
		if !strings.Contains(text, "takeover") || strings.Contains(text, "promote") {
			t.Errorf("takeover: %s", text)
		}
		expect(t, dir, exitInUse, "promote them one by one", append([]string{"promote"}, args...)...)
	}
	expect(t, dir, exitUsage, "--quiesce", "promote", "vm1", "--agent", "unix:/nowhere")
	p.end(t)
}
