package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// An answer of no after an answer of yes does not undo the first change: text and help say so.
func TestNoAfterYes(t *testing.T) {
	for _, answer := range []string{"n\n", "\n", "\x04", "what?\n"} {
		dir := shortDir(t)
		for _, name := range []string{"k1", "k2", "k3"} {
			command(t, dir, "create", name, "--size", "1M")
		}
		p := onTerminal(t, dir, "rm", "k1", "k2", "k3")
		p.await(t, "Remove disk k1")
		p.typed(t, "y\n")
		p.await(t, "Remove disk k2")
		p.typed(t, answer)
		if code := p.exit(t); code != exitUnconfirmed || strings.Contains(p.screen(), "nothing was changed") ||
			!strings.Contains(p.screen(), "removed: k1; not removed: k2, k3") {
			t.Errorf("%q: exit %d:\n%s", answer, code, p.screen())
		}
	}
	for _, code := range []int{exitUnconfirmed, exitRefused} {
		for _, e := range exitText {
			if e.code == code && strings.Contains(e.text, "nothing was changed") {
				t.Errorf("exit code %d: %s: rm of several disks may have removed some", code, e.text)
			}
		}
	}
}

// Input typed before a question is no answer to it: with Enter, without, or as a part of an answer.
func TestInputBeforeTheQuestion(t *testing.T) {
	for _, early := range []string{"y\n", "y", "y\ny\ny\n", "yes\ny"} {
		dir := shortDir(t)
		command(t, dir, "create", "vm1", "--size", "1M")
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

// A second answer that was typed together with the first is no answer to the second question.
func TestInputBeforeTheSecondQuestion(t *testing.T) {
	dir := shortDir(t)
	for _, name := range []string{"k1", "k2"} {
		command(t, dir, "create", name, "--size", "1M")
	}
	p := onTerminal(t, dir, "rm", "k1", "k2")
	p.await(t, "Remove disk k1")
	p.typed(t, "y\ny\n")
	p.await(t, "Remove disk k2")
	p.typed(t, "n\n")
	if code := p.exit(t); code != exitUnconfirmed || !strings.Contains(p.screen(), "removed: k1; not removed: k2") {
		t.Errorf("exit %d:\n%s", code, p.screen())
	}
}

// Closing the terminal at the question interrupts like SIGHUP, whichever of the two is seen first.
func TestTerminalClosedAtTheQuestion(t *testing.T) {
	for range 20 {
		dir := shortDir(t)
		command(t, dir, "create", "vm1", "--size", "1M")
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
	for _, to := range []string{"2>/dev/null", "2>FILE", "2>&1 | cat", "2>&-", "</dev/null", "<&-"} {
		dir := shortDir(t)
		command(t, dir, "create", "vm1", "--size", "1M")
		before := listing(t, dir)
		line := fmt.Sprintf(`"$0" --store %s rm vm1 %s; echo ended`, dir, strings.ReplaceAll(to, "FILE", t.TempDir()+"/e"))
		p := runOnTerminal(t, "", "bash", "-c", line, os.Args[0])
		p.await(t, "ended")
		if after := listing(t, dir); strings.Join(after, "\n") != strings.Join(before, "\n") {
			t.Errorf("%s: changed: %v", to, difference(after, before))
		}
	}
}

// SIGQUIT ends a command in order, like other signals. Only a server prints its goroutines.
func TestSIGQUIT(t *testing.T) {
	for name, act := range map[string]func(*terminal){
		"Ctrl-\\": func(p *terminal) { p.typed(t, "\x1c") },
		"SIGQUIT": func(p *terminal) { p.cmd.Process.Signal(syscall.SIGQUIT) },
	} {
		dir := shortDir(t)
		for _, d := range []string{"k1", "k2"} {
			command(t, dir, "create", d, "--size", "1M")
		}
		p := onTerminal(t, dir, "rm", "k1", "k2")
		p.await(t, "Remove disk k1")
		p.typed(t, "y\n")
		p.await(t, "Remove disk k2")
		act(p)
		if code := p.exit(t); code != 128+int(unix.SIGQUIT) || strings.Contains(p.screen(), "goroutine") ||
			!strings.Contains(p.screen(), "interrupted: removed k1; not removed: k2") {
			t.Errorf("%s: exit %d:\n%s", name, code, p.screen())
		}
	}
	dir := shortDir(t)
	command(t, dir, "create", "vm1", "--size", "1M")
	serving, _ := startServing(t, dir, "vm1")
	serving.cmd.Process.Signal(syscall.SIGQUIT)
	if code := serving.outcome(t); code != 2 || !strings.Contains(serving.log.String(), "goroutine ") {
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
	case code == exitOK && strings.Contains(p.screen(), "removed disk d39"): // the command was faster
	case code != exitInterrupted || !strings.Contains(p.screen(), "interrupted: removed d00, d01, d02"):
		t.Errorf("exit %d:\n%s", code, p.screen())
	}
}
