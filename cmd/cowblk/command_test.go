package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"cowblk/cow/finding"
	"cowblk/cow/store"
	"cowblk/internal/test"
)

// virt-xml-validate (libvirt-clients, libxml2-utils) validates against libvirt's schema.
func TestXMLValidates(t *testing.T) {
	for _, tool := range []string{"virt-xml-validate", "xmllint"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: libvirt-clients, libxml2-utils); CI has it", tool)
		}
	}
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	for _, args := range []string{"", "--type kvm", "--domain",
		"--domain --type kvm --memory 512M --vcpus 8 --queues 3", "--socket-path '/tmp/a&b <c>'"} {
		file := filepath.Join(s.dir, "domain.xml")
		test.Must(t, os.WriteFile(file, []byte(s.command("cowblk xml vm1 "+args)), 0o644))
		if out, err := exec.Command("virt-xml-validate", file).CombinedOutput(); err != nil {
			t.Errorf("xml %s: %v\n%s", args, err, out)
		}
	}
}

// Progress is shown on a terminal and not on a pipe.
func TestImportProgress(t *testing.T) {
	s := newScript(t)
	s.builtin(strings.Fields("file golden.raw 1 3145728"))
	var out, errOut bytes.Buffer
	a := s.app(&out, &errOut)
	a.terminal = func(any) bool { return true }
	if code := run([]string{"import", "golden.raw", "a"}, a); code != 0 {
		t.Fatalf("exit %d: %s", code, &errOut)
	}
	errOut.Reset()
	a.terminal = func(any) bool { return false }
	if code := run([]string{"import", "golden.raw", "b"}, a); code != 0 || errOut.Len() > 0 {
		t.Errorf("exit %d, standard error %q", code, &errOut)
	}
}

func TestExitCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("doing this: %w", err) }
	for _, tt := range []struct {
		err  error
		code int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{os.ErrPermission, 1},
		{usagef("x"), 2},
		{store.ErrInvalid, 2},
		{store.ErrNotFound, 3},
		{store.ErrInUse, 4},
		{store.ErrBusy, 4},
		{store.ErrRefused, 5},
		{&finding.Finding{}, 5},
		{store.ErrExists, 6},
		{unconfirmedf("x"), 9},
		{errStopTimeout, 7},
		{context.Canceled, 130},
		{interruptedf("x"), 130},
		{errors.Join(wrap(store.ErrRefused), wrap(os.ErrClosed)), 5},
	} {
		err := tt.err
		if err != nil {
			err = wrap(err)
		}
		test.Equal(t, exitCode(err), tt.code, "exit", tt.err)
	}
	documented := map[int]bool{}
	for _, e := range exitText {
		documented[e.code] = true
	}
	for _, code := range []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 130, 143} {
		if !documented[code] {
			t.Errorf("exit code %d is not documented", code)
		}
	}
}

// Errors of lower layers get their exit codes through the store's sentinels.
func TestExitCodeOfLayerErrors(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	s.builtin([]string{"damage", "vm1"})
	_, err := s.store().OpenDisk(context.Background(), "vm1", store.OpenOptions{})
	if err == nil || exitCode(err) != exitRefused {
		t.Errorf("%v: exit %d", err, exitCode(err))
	}
}

func TestInterrupted(t *testing.T) {
	s := newScript(t)
	s.builtin(strings.Fields("file golden.raw 1 1048576"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	root := newRoot(s.app(io.Discard, io.Discard))
	root.SetArgs([]string{"import", "golden.raw", "img"})
	if err := root.ExecuteContext(ctx); exitCode(err) != exitInterrupted {
		t.Errorf("error %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Join(s.dir, "store", "images")); len(entries) > 0 {
		t.Error("an image was left")
	}
}

// Every command has a description, and examples that name existing commands and options.
func TestHelp(t *testing.T) {
	root := newRoot(newScript(t).app(io.Discard, io.Discard))
	for _, cmd := range append(root.Commands(), root) {
		if cmd.Name() == "exit-codes" || cmd.Name() == "help" || cmd.Name() == "completion" {
			continue
		}
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s: no description or no example", cmd.Name())
		}
		for _, line := range strings.Split(cmd.Example, "\n") {
			if i := strings.Index(line, "cowblk "); i >= 0 &&
				!strings.HasPrefix(strings.TrimSpace(line), "#") {
				checkExample(t, root, line[i:])
			}
		}
	}
}

func checkExample(t *testing.T, root *cobra.Command, line string) {
	t.Helper()
	for _, end := range []string{" |", " >", " &&", ")"} {
		line, _, _ = strings.Cut(line, end)
	}
	args := split(line)[1:]
	cmd, rest, err := root.Find(args)
	if err != nil || cmd == root {
		t.Errorf("example %q: no such command: %v", line, err)
		return
	}
	for _, a := range rest {
		if a == "--" {
			break
		}
		if name, ok := strings.CutPrefix(a, "--"); ok {
			name, _, _ = strings.Cut(name, "=")
			if cmd.Flags().Lookup(name) == nil && root.PersistentFlags().Lookup(name) == nil {
				t.Errorf("example %q: no option --%s", line, name)
			}
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := newScript(t).command("cowblk completion " + shell); !strings.Contains(out,
			"__complete") {
			t.Errorf("%s: %.100s", shell, out)
		}
	}
}

// What takes a name and is no disk has a line of its own, which does not make the list fail.
func TestListShowsStrays(t *testing.T) {
	dir := t.TempDir()
	command(t, dir, "create", "a", "--size", "1M")
	test.Must(t, os.WriteFile(filepath.Join(dir, "disks", "notes"), nil, 0o600))
	if text := command(t, dir, "list"); !strings.Contains(text, "not a disk: a file") {
		t.Error(text)
	}
	var all []listEntry
	test.Must(t, json.Unmarshal([]byte(command(t, dir, "list", "--json")), &all))
	if len(all) != 2 || all[1].Kind != "other" || all[1].Name != "notes" ||
		!strings.Contains(all[1].Error, "expected a directory, found a file") {
		t.Errorf("%+v", all)
	}
}
