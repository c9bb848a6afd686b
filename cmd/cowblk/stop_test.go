package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// outcomeOf runs cowblk as a process and returns its exit code and output.
func outcomeOf(t *testing.T, dir string, args ...string) (int, string) {
	t.Helper()
	p := start(t, dir, nil, args...)
	return p.outcome(t), p.log.String()
}

// startServing starts a process that serves disks, and connects to the first.
func startServing(t testing.TB, dir string, names ...string) (*process, *frontend.Frontend) {
	t.Helper()
	p := start(t, dir, nil, append([]string{"serve"}, names...)...)
	return p, dial(t, filepath.Join(dir, "run", names[len(names)-1]+".sock"))
}

// stop ends the process in order: written data is durable, and the disk is free when it returns.
func TestStop(t *testing.T) {
	dir := storeWith(t, "1M", "vm1")
	p, _ := startServing(t, dir, "vm1")
	var stops []stopped
	if err := json.Unmarshal([]byte(command(t, dir, "stop", "--json", "vm1")),
		&stops); err != nil || len(stops) != 1 || stops[0].PID != p.cmd.Process.Pid {
		t.Errorf("stop: %+v, %v", stops, err)
	}
	command(t, dir, "rm", "--yes", "vm1") // at once
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("serve ended with %v\n%s", err, p.log.String())
	}
}

// A disk that is not served counts as stopped; one that does not exist is an error.
func TestStopStopped(t *testing.T) {
	dir := storeWith(t, "1M", "vm1")
	if out := command(t, dir, "stop", "vm1"); strings.Count(out,
		"vm1 is not open in any process") != 1 {
		t.Errorf("stop: %s", out)
	}
	for _, args := range [][]string{{"stop", "nosuch"}, {"stop", "vm1", "nosuch"}} {
		if code, text := outcomeOf(t, dir, args...); code != exitNotFound {
			t.Errorf("%v: exit %d: %s", args, code, text)
		}
	}
	for _, args := range [][]string{{"stop"}, {"stop", "a/b"}, {"stop", "vm1", "--timeout", "0s"},
		{"stop", "vm1", "--timeout", "-1s"}} {
		if code, text := outcomeOf(t, dir, args...); code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, code, text)
		}
	}
}

// A process ends as a whole: only if all of its disks are named, or with --whole-process.
func TestStopOneOfSeveral(t *testing.T) {
	dir := storeWith(t, "1M", "a", "b", "c")
	p, _ := startServing(t, dir, "a", "b")
	code, text := outcomeOf(t, dir, "stop", "a", "c")
	if code != exitInUse || !strings.Contains(text, "also serves b") || !strings.Contains(text,
		"--whole-process") {
		t.Errorf("exit %d: %s", code, text)
	}
	dial(t, filepath.Join(dir, "run", "a.sock")) // both are still served
	test.Equal(t, command(t, dir, "stop", "b", "a"), "b is stopped\na is stopped\n", "stop of both")
	p.cmd.Wait()
	p, _ = startServing(t, dir, "a", "b")
	test.Equal(t, command(t, dir, "stop", "b", "--whole-process"), "b is stopped\n",
		"stop of the whole process")
	p.cmd.Wait()
}

// A process that has the disk open without serving it is waited for, up to the time limit.
func TestStopTimeout(t *testing.T) {
	s := newScript(t)
	s.command("cowblk create vm1 --size 1M")
	o := s.open("vm1")
	if out := s.command("cowblk stop vm1 --timeout 50ms"); !strings.Contains(out, "exit 7") ||
		!strings.Contains(out, "not stopped in time") {
		t.Errorf("stop of a disk that stays open: %s", out)
	}
	test.Must(t, o.Close())
	if out := s.command("cowblk stop vm1 --timeout 50ms"); !strings.Contains(out,
		"vm1 is not open") {
		t.Errorf("then: %s", out)
	}
}

var destroys = regexp.MustCompile(
	`cowblk rm| rm |kill |cowblk rollback [a-z0-9]+@|remove (it|them|the)|--force\b.*\bneeded`)

// No message advises to remove or to kill: errors about disks in use and taken names give other
// advice.
func TestAdviceNeverDestroys(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		test.Must(t, err)
		for _, line := range strings.Split(string(text), "\n") {
			if !strings.HasPrefix(line, "2> ") {
				continue
			}
			if destroys.MatchString(line) {
				t.Errorf("%s: %s", file, line)
			}
		}
	}
}
