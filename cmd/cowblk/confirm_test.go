package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"cowblk/cow/store"
	"cowblk/internal/test"
)

// terminalApp returns an app with a terminal on which answer is typed.
func terminalApp(s *script, answer string, out, errOut io.Writer) *app {
	a := s.app(out, errOut)
	a.in = strings.NewReader(answer)
	a.terminal = func(stream any) bool { return stream == a.in || stream == a.err }
	return a
}

func TestConfirm(t *testing.T) {
	for answer, gone := range map[string]bool{
		"y\n": true, "YES\n": true, " y \n": true, "n\n": false, "\n": false, "": false, "y": false,
		"yo\n": false, "yes please\n": false,
	} {
		t.Run(fmt.Sprintf("%q", answer), func(t *testing.T) {
			s := newScript(t)
			s.command("cowblk create vm1 --size 1M")
			var out, errOut bytes.Buffer
			want := exitUnconfirmed
			if gone {
				want = exitOK
			}
			if code := run([]string{"rm", "vm1"}, terminalApp(s, answer, &out,
				&errOut)); code != want {
				t.Fatalf("exit %d, want %d: %s", code, want, &errOut)
			}
			if !strings.Contains(errOut.String(), "Remove disk vm1 (1 layer, ") {
				t.Errorf("question %q", &errOut)
			}
			_, err := s.store().Disk("vm1")
			if errors.Is(err, store.ErrNotFound) != gone {
				t.Errorf("after %q: %v", answer, err)
			}
			if !gone {
				if code := run([]string{"rm", "--yes", "vm1"}, terminalApp(s, "", io.Discard,
					&errOut)); code != exitOK {
					t.Errorf("with --yes: exit %d: %s", code, &errOut)
				}
			}
		})
	}
}

// Input from a pipe or a file never confirms; --yes does.
func TestNoTerminalNoConsent(t *testing.T) {
	for _, input := range []string{"", "n\n", "y\n", "yes\n", strings.Repeat("y\n", 1000)} {
		for _, command := range [][]string{{"rm", "vm1"}, {"remove", "vm1"},
			{"rm", "vm1", "--json"}, {"rollback", "vm1@t1"}, {"rollback", "vm1@t1", "--json"},
			{"bench", "s", "--rw", "write"}} {
			s := newScript(t)
			s.command("cowblk create vm1 --size 1M")
			s.command("cowblk promote vm1 --tag t1")
			before, err := s.store().Disk("vm1")
			test.Must(t, err)
			var out, errOut bytes.Buffer
			a := s.app(&out, &errOut)
			a.in = strings.NewReader(input)
			if code := run(command, a); code != exitUnconfirmed ||
				!strings.Contains(errOut.String(), "--yes") {
				t.Errorf("%v with %.10q: exit %d: %s", command, input, code, &errOut)
			}
			// Neither does a terminal if the question cannot be shown.
			a.terminal = func(stream any) bool { return stream == a.in }
			if code := run(command, a); code != exitUnconfirmed {
				t.Errorf("%v with %.10q, standard error no terminal: exit %d: %s", command, input,
					code, &errOut)
			}
			after, err := s.store().Disk("vm1")
			if err != nil || after.Head().UUID != before.Head().UUID {
				t.Errorf("%v with %.10q changed the disk: %v", command, input, err)
			}
		}
	}
}

func TestRollbackAsks(t *testing.T) {
	s := newScript(t)
	for _, line := range []string{"create vm1 --size 1M", "promote vm1 --tag t1",
		"promote vm1 --tag t2"} {
		s.command("cowblk " + line)
	}
	var errOut bytes.Buffer
	for _, tt := range []struct {
		answer string
		args   []string
		layers int
	}{
		{"y\n", nil, 3},
		{"y\n", []string{"--yes"}, 3}, // a tag would be lost, which --yes does not confirm
		{"y\n", []string{"--force"}, 3},
		{"n\n", []string{"--discard-tags"}, 3},
		{"y\n", []string{"--discard-tags"}, 2},
	} {
		want := exitUnconfirmed
		if tt.layers == 2 {
			want = exitOK
		}
		if code := run(append([]string{"rollback", "vm1@t1"}, tt.args...), terminalApp(s, tt.answer,
			io.Discard, &errOut)); code != want {
			t.Errorf("%v, answer %q: exit %d: %s", tt.args, tt.answer, code, &errOut)
		}
		if m, err := s.store().Disk("vm1"); err != nil || len(m.Layers) != tt.layers {
			t.Errorf("%v, answer %q: %d layers, %v", tt.args, tt.answer, len(m.Layers), err)
		}
	}
	for _, text := range []string{
		"Discard everything in vm1 that is newer than vm1@t1: tag t2; 2 layers, ",
		"would discard 1 tag of disk \"vm1\" that is newer: t2", "cowblk create NEW --from vm1@t1",
	} {
		if !strings.Contains(errOut.String(), text) {
			t.Errorf("expected %q in %q", text, &errOut)
		}
	}
}

// An answer does not cover tags that were created after the question.
func TestRollbackLosesWhatWasAgreed(t *testing.T) {
	s := newScript(t)
	for _, line := range []string{"create vm1 --size 1M", "promote vm1 --tag t1",
		"promote vm1 --tag t2", "promote vm1 --tag t3"} {
		s.command("cowblk " + line)
	}
	st := s.store()
	test.ErrorIs(t, test.Err(st.RollbackLosing(t.Context(), store.Ref{Name: "vm1", Tag: "t1"},
		[]string{"t2"})), store.ErrBusy, "rollback that was agreed to lose t2 only")
	if m, err := st.Disk("vm1"); err != nil || len(m.Layers) != 4 {
		t.Errorf("%v, %v", m, err)
	}
	if r, err := st.RollbackLosing(t.Context(), store.Ref{Name: "vm1", Tag: "t1"},
		[]string{"t2", "t3"}); err != nil || r.Depth != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A signal at the question ends the command at once, without Enter. Nothing is removed.
func TestSignalAtTheQuestion(t *testing.T) {
	for name, tt := range map[string]struct {
		code int
		act  func(*testing.T, *terminal)
	}{
		"Ctrl-C":  {130, func(t *testing.T, p *terminal) { p.typed(t, "\x03") }},
		"SIGINT":  {130, func(t *testing.T, p *terminal) { p.cmd.Process.Signal(os.Interrupt) }},
		"SIGTERM": {143, func(t *testing.T, p *terminal) { p.cmd.Process.Signal(syscall.SIGTERM) }},
		"SIGHUP":  {129, func(t *testing.T, p *terminal) { p.cmd.Process.Signal(syscall.SIGHUP) }},
		"Ctrl-D":  {exitUnconfirmed, func(t *testing.T, p *terminal) { p.typed(t, "\x04") }},
		"no":      {exitUnconfirmed, func(t *testing.T, p *terminal) { p.typed(t, "n\n") }},
	} {
		for _, args := range [][]string{{"rm", "vm1"}, {"rollback", "vm1@t1"}} {
			t.Run(name+" "+args[0], func(t *testing.T) {
				dir := storeWith(t, "1M", "vm1")
				command(t, dir, "promote", "vm1", "--tag", "t1")
				before := listing(t, dir)
				p := onTerminal(t, dir, args...)
				p.await(t, "[y/N] ")
				tt.act(t, p)
				if code := p.exit(t); code != tt.code {
					t.Errorf("exit %d, want %d:\n%s", code, tt.code, p.screen())
				}
				if after := listing(t, dir); strings.Join(after, "\n") != strings.Join(before,
					"\n") {
					t.Errorf("changed: %v", difference(after, before))
				}
			})
		}
	}
}

// interruptAt is a standard output that interrupts the command when it sees text.
type interruptAt struct {
	text   string
	cancel func()
	bytes.Buffer
}

func (w *interruptAt) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.cancel()
	}
	return w.Buffer.Write(p)
}

// rm --yes that is interrupted between two names reports what was removed and what was not, and
// removes no more. See TestEndAtTheSecondQuestion for rm with questions.
func TestLongRemovalInterrupted(t *testing.T) {
	s := newScript(t)
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("d%02d", i))
		s.command("cowblk create " + names[i] + " --size 1M")
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := &interruptAt{text: "removed disk d04 ", cancel: cancel}
	var errOut bytes.Buffer
	a := s.app(out, &errOut)
	root := newRoot(a)
	root.SetArgs(append([]string{"rm", "--yes"}, names...))
	err := root.ExecuteContext(ctx)
	if exitCodeOf(ctx, err) != exitInterrupted || !strings.HasPrefix(a.errorText(err),
		"interrupted: removed d00, d01, d02, d03, d04; not removed: d05, d06,") {
		t.Errorf("%v: %s", err, a.errorText(err))
	}
	disks, err := s.store().Disks()
	if err != nil || len(disks) != 15 || disks[0].Name != "d05" {
		t.Errorf("%d disks left, %v", len(disks), err)
	}
}

// rm refuses a name that does not exist before it removes anything. A later failure reports the
// progress.
func TestRemovalOfManyRefused(t *testing.T) {
	s := newScript(t)
	for _, name := range []string{"a", "b", "c"} {
		s.command("cowblk create " + name + " --size 1M")
	}
	for _, line := range []string{"rm --yes a nosuch", "rm --yes a b/c", "rm --yes a ''"} {
		if out := s.command("cowblk " + line); strings.Contains(out, "removed disk") {
			t.Errorf("%s: %s", line, out)
		}
	}
	s.builtin([]string{"hold", "b"})
	if out := s.command("cowblk rm --yes a b c"); !strings.Contains(out,
		"removed: a; not removed: b, c") || !strings.Contains(out, "exit 4") {
		t.Errorf("a disk in use in the middle: %s", out)
	}
}
