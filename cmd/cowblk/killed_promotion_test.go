package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cowblk/backend/backendtest"
	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/backend/qmp"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// killEnv makes the test binary, as cowblk, kill itself with SIGKILL at a change to a file of its
// store. The value "N FROM" selects the N-th change, counted from the first that matches the
// regular expression FROM.
const killEnv = "COWBLK_TEST_KILL_AT"

const (
	fromPromotion = `^mkdir .*/tmp/[0-9a-f-]{36}$` // the transaction directory of a promotion
	fromNote      = `^create .*/quiesced\.json\.new$`
)

// killMain is main on a file system that kills the process.
func killMain(spec string) int {
	at, from, _ := strings.Cut(spec, " ")
	n, err := strconv.Atoi(at)
	if err != nil {
		panic(err)
	}
	first := regexp.MustCompile(from)
	a := newApp()
	begin := func(c faultfs.Call) bool { return first.MatchString(c.Op + " " + c.Name) }
	a.files = faultfs.NewKillFS(vfs.OS{}, faultfs.Kill{At: n, Begin: begin,
		OnKill: func(c faultfs.Call) {
			fmt.Fprintln(os.Stderr, "killed at:", c)
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}})
	return run(os.Args[1:], a)
}

// killedPromotion is one test case.
type killedPromotion struct {
	mode string // of quiescing
	from string // where counting starts
	// cli: the promoting command line survives and can thaw the guest; otherwise the next process
	// must.
	cli bool
	// guest: kill at the n-th call of hook, not at a change to a file.
	guest  bool
	output string // expected output of the failed promotion
}

// The process that serves two disks is killed at every change to a file during a quiesced
// promotion, and at every command to the guest. The guest must be thawed, by the command line or by
// the next process, and both disks must be on the old heads or both on the new ones.
func TestKilledDaemon(t *testing.T) {
	for _, k := range []killedPromotion{
		{mode: qmp.QuiesceGuest, from: fromPromotion, cli: true},
		{mode: qmp.QuiescePause, from: fromNote},
		{mode: qmp.QuiesceGuest, cli: true, guest: true},
		{mode: qmp.QuiesceGuest, guest: true},
		{mode: qmp.QuiescePause, cli: true, guest: true},
		{mode: qmp.QuiescePause, guest: true},
	} {
		t.Run(fmt.Sprintf("%s/cli=%v/guest=%v", k.mode, k.cli, k.guest), func(t *testing.T) {
			kills := 0
			outcomes := map[bool]int{}
			for n := 1; ; n++ {
				killed := false
				t.Run(fmt.Sprint(n), func(t *testing.T) {
					var promoted bool
					if killed, promoted = k.at(t, n); killed {
						outcomes[promoted]++
					}
				})
				if t.Failed() {
					return
				}
				if !killed {
					break
				}
				kills++
			}
			if outcomes[false] == 0 || outcomes[true] == 0 {
				t.Errorf("killed %d times: %v", kills, outcomes)
			}
			t.Logf("killed at each of %d points: %d times on the old heads, %d on the new", kills,
				outcomes[false], outcomes[true])
		})
	}
}

// at kills a process at point n and checks the state. It reports false if there is no point n.
func (k *killedPromotion) at(t *testing.T, n int) (killed, promoted bool) {
	dir := shortDir(t)
	names := []string{"a", "b"}
	for _, name := range names {
		command(t, dir, "create", name, "--size", "1M")
	}
	g := backendtest.NewGuest(t, dir)
	p := start(t, dir, func(c *exec.Cmd) {
		if !k.guest {
			c.Env = append(c.Env, fmt.Sprintf("%s=%d %s", killEnv, n, k.from))
		}
	}, "serve", "a", "b")
	var disks []*frontend.Frontend
	for _, name := range names {
		f := dial(t, filepath.Join(dir, "run", name+".sock"))
		writeAt(t, f, 0, pattern(1, 8192))
		test.Must(t, f.Driver(0).Flush())
		disks = append(disks, f)
	}
	if k.guest {
		calls := 0
		g.SetHook(func(string, string) {
			if calls++; calls == n {
				p.cmd.Process.Kill()
			}
		})
	}

	answered := k.promote(dir, g)
	if k.cli && g.Quiesced() {
		t.Error("the guest is quiesced although the command has ended")
	}
	later := answered
	for _, f := range disks { // fails if the process is gone
		if _, err := f.Driver(0).WriteAt(pattern(2, 4096), 4096); err != nil ||
			f.Driver(0).Flush() != nil {
			later = false
		}
	}
	p.cmd.Process.Signal(syscall.SIGTERM) // changes up to its end count too
	killed = p.cmd.Wait() != nil
	if !answered && !killed {
		t.Errorf("the promotion failed: %s\n%s", k.output, p.log.String())
	}
	for _, f := range disks {
		f.Close()
	}
	g.SetHook(nil)
	return killed, k.check(t, dir, g, answered, later)
}

// promote requests the promotion and reports whether it succeeded.
func (k *killedPromotion) promote(dir string, g *backendtest.Guest) bool {
	spec := g.Spec(k.mode)
	if k.cli {
		var out bytes.Buffer
		a := &app{
			in: strings.NewReader(""), out: &out, err: &out, getenv: func(string) string {
				return ""
			},
			terminal: func(any) bool { return false }, kvm: func() bool { return false },
		}
		args := []string{"--store", dir, "promote", "a", "b", "--tag", "t", "--quiesce", k.mode}
		for flag, value := range map[string]string{"--qmp": spec.QMP, "--agent": spec.Agent} {
			if value != "" {
				args = append(args, flag, value)
			}
		}
		if code := run(args, a); code != exitOK {
			k.output = out.String()
			return false
		}
		return true
	}
	c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return c.Run(ctx, "cow-promote", daemon.PromoteArgs{Disks: []string{"a", "b"}, Tag: "t",
		Spec: spec}, nil) == nil
}

// check starts the next process. later: data written after the promotion was flushed.
func (k *killedPromotion) check(t *testing.T, dir string, g *backendtest.Guest, answered,
	later bool) (promoted bool) {
	p := start(t, dir, nil, "serve", "a", "b")
	for i, name := range []string{"a", "b"} {
		f := dial(t, filepath.Join(dir, "run", name+".sock"))
		wantAt(t, f, 0, pattern(1, 4096))
		if later {
			wantAt(t, f, 4096, pattern(2, 4096))
		}
		f.Close()
		tagged := strings.Contains(command(t, dir, "info", name), "@t ")
		if i > 0 && tagged != promoted {
			t.Errorf("promoted: a %v, b %v", promoted, tagged)
		}
		promoted = tagged
	}
	if answered && !promoted {
		t.Error("the promotion was reported and has not happened")
	}
	s, err := store.Open(dir, store.Options{})
	test.Must(t, err)
	test.Eventually(t, "the guest is thawed, and its records are gone", func() bool {
		var v qmp.Spec
		a, errA := s.QuiesceRecord("a", &v)
		b, errB := s.QuiesceRecord("b", &v)
		return errors.Join(errA, errB) == nil && !a && !b && !g.Quiesced()
	}, &p.log)
	if promoted {
		command(t, dir, "create", "c", "--from", "a@t")
		o, err := s.OpenDisk(context.Background(), "c", store.OpenOptions{})
		test.Must(t, err)
		defer o.Close()
		got := make([]byte, 8192)
		if _, err := o.Disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(1, 8192)) {
			t.Errorf("the tag differs from what was written before the promotion: %v", err)
		}
	}
	p.end(t)
	return promoted
}
