package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"cowblk/cow/store"
)

// virt-xml-validate (libvirt-clients, libxml2-utils) checks against libvirt's own schema.
func TestXMLValidates(t *testing.T) {
	for _, tool := range []string{"virt-xml-validate", "xmllint"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (Debian: libvirt-clients, libxml2-utils); CI has it", tool)
		}
	}
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	for _, args := range []string{"", "--type kvm", "--domain", "--domain --type kvm --memory 512M --vcpus 8 --queues 3", "--socket-path '/tmp/a&b <c>'"} {
		file := filepath.Join(s.dir, "domain.xml")
		if err := os.WriteFile(file, []byte(s.command("cowblk xml vm1 "+args)), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("virt-xml-validate", file).CombinedOutput(); err != nil {
			t.Errorf("xml %s: %v\n%s", args, err, out)
		}
	}
}

func TestConfirm(t *testing.T) {
	for answer, gone := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yo\n": false} {
		t.Run(fmt.Sprintf("%q", answer), func(t *testing.T) {
			s := newScript(t)
			s.command("cowblk create vm1 --size 1M")
			var out, errOut bytes.Buffer
			a := s.app(&out, &errOut)
			a.in = strings.NewReader(answer)
			a.terminal = func(stream any) bool { return stream == a.in }
			if code := run([]string{"rm", "vm1"}, a); code != 0 {
				t.Fatalf("exit %d: %s", code, &errOut)
			}
			if !strings.Contains(errOut.String(), "Remove disk vm1 (1 layer, ") {
				t.Errorf("question %q", &errOut)
			}
			_, err := s.store().Disk("vm1")
			if errors.Is(err, store.ErrNotFound) != gone {
				t.Errorf("after %q: %v", answer, err)
			}
			if !gone {
				a.in = strings.NewReader("")
				if code := run([]string{"rm", "--yes", "vm1"}, a); code != 0 {
					t.Errorf("with --yes: exit %d", code)
				}
			}
		})
	}
}

func TestRollbackAsks(t *testing.T) {
	s := newScript(t)
	for _, line := range []string{"create vm1 --size 1M", "promote vm1 --tag t1", "promote vm1 --tag t2"} {
		s.command("cowblk " + line)
	}
	var out, errOut bytes.Buffer
	a := s.app(&out, &errOut)
	a.terminal = func(stream any) bool { return stream == a.in }
	for _, answer := range []string{"n\n", "y\n"} {
		a.in = strings.NewReader(answer)
		if code := run([]string{"rollback", "vm1@t1"}, a); code != 0 {
			t.Fatalf("exit %d: %s", code, &errOut)
		}
		m, err := s.store().Disk("vm1")
		if err != nil || (len(m.Layers) == 2) != (answer == "y\n") {
			t.Errorf("after %q: %d layers, %v", answer, len(m.Layers), err)
		}
	}
	if q := errOut.String(); !strings.Contains(q, "Discard everything in vm1 that is newer than vm1@t1: tag t2; 2 layers, ") {
		t.Errorf("question %q", q)
	}
}

// A person sees progress; a pipe does not.
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
		{&store.Mismatch{}, 5},
		{store.ErrExists, 6},
		{context.Canceled, 130},
		{errors.Join(wrap(store.ErrRefused), wrap(os.ErrClosed)), 5},
	} {
		err := tt.err
		if err != nil {
			err = wrap(err)
		}
		if got := exitCode(err); got != tt.code {
			t.Errorf("%v: exit %d, want %d", tt.err, got, tt.code)
		}
	}
	documented := map[int]bool{}
	for _, e := range exitText {
		documented[e.code] = true
	}
	for _, code := range []int{0, 1, 2, 3, 4, 5, 6, 130} {
		if !documented[code] {
			t.Errorf("exit code %d is not documented", code)
		}
	}
}

// Errors of the layers below get their exit codes by way of the store.
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

// Every command says what it does, with examples that name commands and options that exist.
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
			if i := strings.Index(line, "cowblk "); i >= 0 && !strings.HasPrefix(strings.TrimSpace(line), "#") {
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

func TestSizeFlag(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "1b": -1, "4K": 4096, "4k": 4096, "4KiB": 4096, "4KB": 4000, "20G": 20 << 30, "1.5T": 3 << 39,
		"1T": 1 << 40, "9007199254740993": 9007199254740993, "": -1, "-1": -1, "-1G": -1, "G": -1, "1X": -1, "99999E": -1, "1 G": 1 << 30,
	} {
		var s sizeFlag
		err := s.Set(text)
		if want < 0 && text != "1b" {
			if err == nil {
				t.Errorf("%q is %d", text, s)
			}
			continue
		}
		if text != "1b" && (err != nil || int64(s) != want) {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{"a=b,c": "a=b,c", "a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'"} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := newScript(t).command("cowblk completion " + shell); !strings.Contains(out, "__complete") {
			t.Errorf("%s: %.100s", shell, out)
		}
	}
}
