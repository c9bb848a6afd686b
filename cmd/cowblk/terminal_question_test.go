package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Input typed before a question is no answer to it: with Enter, without, or as a part of an answer.
func TestInputBeforeTheQuestion(t *testing.T) {
	for _, early := range []string{"y\n", "y", "y\ny\ny\n", "yes\ny"} {
		dir := storeWith(t, "1M", "vm1")
		p := typedAhead(t, dir, early, "rm", "vm1")
		p.await(t, "[y/N] ")
		p.typed(t, "\n")
		if code := p.exit(t); code != exitUnconfirmed {
			t.Errorf("%q typed before the question: exit %d:\n%s", early, code, p.screen())
		}
		if list := command(t, dir, "list"); !strings.Contains(list, "vm1") {
			t.Errorf("%q typed before the question has removed the disk", early)
		}
	}
}

// Closing the terminal at the question interrupts like SIGHUP, whichever of the two is seen first.
func TestTerminalClosedAtTheQuestion(t *testing.T) {
	for range 20 {
		dir := storeWith(t, "1M", "vm1")
		p := onTerminal(t, dir, "rm", "vm1")
		p.await(t, "[y/N] ")
		p.master.Close()
		if code := p.exit(t); code != 128+int(unix.SIGHUP) {
			t.Fatalf("exit %d, want 129:\n%s", code, p.screen())
		}
		if list := command(t, dir, "list"); !strings.Contains(list, "vm1") {
			t.Error("removed")
		}
	}
}

// A question that the user cannot see is not asked, wherever its stream leads. Nothing is changed.
func TestInvisibleQuestion(t *testing.T) {
	for _, to := range []string{"2>/dev/null", "2>FILE", "2>&1 | cat", "2>&-", "</dev/null",
		"<&-"} {
		dir := storeWith(t, "1M", "vm1")
		before := listing(t, dir)
		line := fmt.Sprintf(`"$0" --store %s rm vm1 %s; echo ended`, dir, strings.ReplaceAll(to,
			"FILE", t.TempDir()+"/e"))
		p := runOnTerminal(t, "", "bash", "-c", line, os.Args[0])
		p.await(t, "ended")
		if after := listing(t, dir); strings.Join(after, "\n") != strings.Join(before, "\n") {
			t.Errorf("%s: changed: %v", to, difference(after, before))
		}
	}
}

// What ends rm at its second question does not undo its first removal: the text says what was
// removed and what was not.
func TestEndAtTheSecondQuestion(t *testing.T) {
	signal := func(s os.Signal) func(*terminal) {
		return func(p *terminal) { p.cmd.Process.Signal(s) }
	}
	typed := func(text string) func(*terminal) {
		return func(p *terminal) { p.typed(t, text) }
	}
	const no, interrupted = "removed: k1; not removed: k2, k3",
		"interrupted: removed k1; not removed: k2, k3"
	for name, tt := range map[string]struct {
		first string // typed at the first question
		act   func(*terminal)
		code  int
		says  string
	}{
		"no":                          {"y\n", typed("n\n"), exitUnconfirmed, no},
		"Enter":                       {"y\n", typed("\n"), exitUnconfirmed, no},
		"Ctrl-D":                      {"y\n", typed("\x04"), exitUnconfirmed, no},
		"another answer":              {"y\n", typed("what?\n"), exitUnconfirmed, no},
		"no, after two answers typed": {"y\ny\n", typed("n\n"), exitUnconfirmed, no},
		"Ctrl-C":                      {"y\n", typed("\x03"), exitInterrupted, interrupted},
		"Ctrl-\\":                     {"y\n", typed("\x1c"), 128 + int(unix.SIGQUIT), interrupted},
		"SIGQUIT": {"y\n", signal(syscall.SIGQUIT), 128 + int(unix.SIGQUIT),
			interrupted},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeWith(t, "1M", "k1", "k2", "k3")
			p := onTerminal(t, dir, "rm", "k1", "k2", "k3")
			p.await(t, "Remove disk k1")
			p.typed(t, tt.first)
			p.await(t, "Remove disk k2")
			tt.act(p)
			code := p.exit(t)
			if screen := p.screen(); code != tt.code || !strings.Contains(screen, tt.says) ||
				strings.Contains(screen, "nothing was changed") || strings.Contains(screen,
				"goroutine") {
				t.Errorf("exit %d:\n%s", code, screen)
			}
			list := command(t, dir, "list")
			if strings.Contains(list, "\nk1 ") || !strings.Contains(list, "\nk2 ") ||
				!strings.Contains(list, "\nk3 ") {
				t.Errorf("left:\n%s", list)
			}
		})
	}
	for _, code := range []int{exitUnconfirmed, exitRefused} {
		for _, e := range exitText {
			if e.code == code && strings.Contains(e.text, "nothing was changed") {
				t.Errorf("exit code %d: %s: rm of several disks may have removed some", code,
					e.text)
			}
		}
	}
}

// A server that gets SIGQUIT prints its goroutines.
func TestSIGQUITOfAServer(t *testing.T) {
	serving, _ := startServing(t, storeWith(t, "1M", "vm1"), "vm1")
	serving.cmd.Process.Signal(syscall.SIGQUIT)
	if code := serving.outcome(t); code != 2 || !strings.Contains(serving.log.String(),
		"goroutine ") {
		t.Errorf("serve: exit %d: %s", code, serving.log.String())
	}
}

// Two signals at once count as one, and the command reports what it has done.
func TestTwoSignalsAtOnce(t *testing.T) {
	dir := shortDir(t)
	args := []string{"rm", "-y"}
	for i := range 40 {
		name := fmt.Sprintf("d%02d", i)
		command(t, dir, "create", name, "--size", "1M")
		args = append(args, name)
	}
	p := onTerminal(t, dir, args...)
	p.await(t, "removed disk d02")
	p.cmd.Process.Signal(os.Interrupt)
	p.cmd.Process.Signal(os.Interrupt)
	p.cmd.Process.Signal(syscall.SIGTERM)
	switch code := p.exit(t); {
	// the command was faster
	case code == exitOK && strings.Contains(p.screen(), "removed disk d39"):
	case code != exitInterrupted || !strings.Contains(p.screen(),
		"interrupted: removed d00, d01, d02"):
		t.Errorf("exit %d:\n%s", code, p.screen())
	}
}
