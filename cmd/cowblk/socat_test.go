package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cowblk/internal/test"
)

// TestSocatSession drives the control socket of a running daemon with socat. In testdata/socat.txt
// a line "> TEXT" is sent and the answer follows it; "? EVENT" waits for that event, which follows
// it. Text that differs from run to run is replaced.
func TestSocatSession(t *testing.T) {
	const golden = "testdata/socat.txt"
	want, err := os.ReadFile(golden)
	test.Must(t, err)
	dir := storeWith(t, "16M", "a")
	p := start(t, dir, nil, "serve", "a")
	dial(t, filepath.Join(dir, "run", "a.sock")).Close()
	test.Eventually(t, "the front-end has gone",
		func() bool { return !strings.Contains(command(t, dir, "info", "a", "--json"), `"connected": true`) })
	s := startSocat(t, filepath.Join(dir, "run", "a.ctl"))

	var got strings.Builder
	fmt.Fprintln(&got, s.line()) // the greeting
	for line := range strings.Lines(string(want)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&got, line)
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&got, line)
			fmt.Fprintln(s.in, line[2:])
			fmt.Fprintln(&got, s.reply())
		case strings.HasPrefix(line, "? "):
			fmt.Fprintln(&got, line)
			fmt.Fprintln(&got, s.event(line[2:]))
		}
	}
	s.in.Close() // half-close: queued output is still sent
	test.Check(t, s.cmd.Wait(), "socat")
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("cowblk: %v\n%s", err, p.log.String())
	}
	if os.Getenv(updateEnv) != "" {
		test.Must(t, os.WriteFile(golden, []byte(got.String()), 0o644))
		return
	}
	compare(t, string(want), got.String())
}

// socat is a running socat and its events so far.
type socat struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	events []string
}

func startSocat(t *testing.T, path string) *socat {
	s := &socat{t: t, cmd: exec.Command("socat", "-t", "30", "-", "UNIX-CONNECT:"+path)}
	s.cmd.Stderr = os.Stderr
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	test.Must(t, err)
	s.out = bufio.NewScanner(out)
	test.Must(t, s.cmd.Start())
	late := time.AfterFunc(waitTimeout, func() { s.cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		if s.cmd.ProcessState == nil {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		}
	})
	return s
}

// runToRun replaces text that differs from run to run.
var runToRun = []struct {
	form *regexp.Regexp
	text string
}{
	{regexp.MustCompile(`"timestamp":\{[^}]*\}`), `"timestamp":{}`},
	{regexp.MustCompile(`"version":\{.*\},"capabilities"`), `"version":{},"capabilities"`},
	{regexp.MustCompile(`"(swap-microseconds|index-bytes|mapping-bytes|rd_bytes|rd_operations|successful_polls|failed_polls|poll_time_ns)":[0-9.]+`), `"$1":0`},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}`), `UUID`},
}

// line returns the next line with replacements.
func (s *socat) line() string {
	s.t.Helper()
	if !s.out.Scan() {
		s.t.Fatalf("socat has ended: %v", s.out.Err())
	}
	line := s.out.Text()
	if !json.Valid([]byte(line)) {
		s.t.Errorf("not one JSON text: %s", line)
	}
	for _, r := range runToRun {
		line = r.form.ReplaceAllString(line, r.text)
	}
	return line
}

// reply returns the next line that is not an event.
func (s *socat) reply() string {
	s.t.Helper()
	for {
		line := s.line()
		if !strings.HasPrefix(line, `{"event"`) {
			return line
		}
		s.events = append(s.events, line)
	}
}

// event returns the first unread event of this name.
func (s *socat) event(name string) string {
	s.t.Helper()
	for {
		for i, e := range s.events {
			if strings.HasPrefix(e, `{"event":"`+name+`"`) {
				s.events = append(s.events[:i], s.events[i+1:]...)
				return e
			}
		}
		s.events = append(s.events, s.line())
	}
}
