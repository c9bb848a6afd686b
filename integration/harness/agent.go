package harness

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// lastLines is the number of lines of a script's output that an error includes.
const lastLines = 60

// lastOutput returns the last lines of a script's output.
func lastOutput(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Join(lines[max(0, len(lines)-lastLines):], "\n")
}

// ErrScript reports a guest script that ended with a status other than 0.
var ErrScript = errors.New("script failed in the guest")

// Boot is one start of the guest's system, as its agent reported it.
type Boot struct {
	Kernel string
	Uptime time.Duration // since the guest's kernel started, by the guest's clock
}

// Agent runs scripts in the guest over its second serial port. The guest's end,
// artefacts/golden/agent, describes the protocol.
type Agent struct {
	port  *Port
	boots chan Boot

	mu     sync.Mutex
	id     int
	output []string    // of the running script
	result chan result // of the running script; nil: none runs
}

type result struct {
	output string
	status int
}

// ListenAgent creates the socket for the host's end of the port.
func ListenAgent(path string) (*Agent, error) {
	// The capacity is more than the boots of any test.
	a := &Agent{boots: make(chan Boot, 1024)}
	port, err := ListenPort(path, a.line)
	if err != nil {
		return nil, err
	}
	a.port = port
	return a, nil
}

func (a *Agent) line(s string) {
	// A reset in the middle of a line joins that line and the next boot's greeting.
	if i := strings.Index(s, "@ready "); i >= 0 {
		a.ready(strings.Fields(s[i:]))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.result == nil {
		return
	}
	f := strings.Fields(s)
	if len(f) != 3 || f[0] != "@done" || f[1] != strconv.Itoa(a.id) {
		a.output = append(a.output, s)
		return
	}
	status, err := strconv.Atoi(f[2])
	if err != nil {
		a.output = append(a.output, s)
		return
	}
	a.result <- result{strings.TrimSuffix(strings.Join(a.output, "\n"), "\n"), status}
	a.result, a.output = nil, nil
}

func (a *Agent) ready(f []string) {
	if len(f) != 3 {
		return
	}
	seconds, err := strconv.ParseFloat(f[2], 64)
	if err != nil {
		return
	}
	select {
	case a.boots <- Boot{Kernel: f[1], Uptime: time.Duration(seconds * float64(time.Second))}:
	default: // nobody reads the channel: keep the oldest 1,024
	}
}

// Send starts a script and does not wait for its end. It serves scripts that end the machine.
func (a *Agent) Send(script string) error {
	_, err := a.start(script)
	return err
}

func (a *Agent) start(script string) (<-chan result, error) {
	a.mu.Lock()
	a.id++
	id := a.id
	ch := make(chan result, 1)
	a.result, a.output = ch, nil
	a.mu.Unlock()
	line := fmt.Sprintf("RUN %d %s\n", id, base64.StdEncoding.EncodeToString([]byte(script)))
	_, err := a.port.Write([]byte(line))
	return ch, err
}

// Run runs a shell script in the guest and returns its output without the final newlines. A status
// other than 0 returns ErrScript with the output in the message. The guest must be ready, and only
// one script may run at a time.
func (a *Agent) Run(ctx context.Context, script string) (string, error) {
	ch, err := a.start(script)
	if err != nil {
		return "", err
	}
	select {
	case r := <-ch:
		r.output = strings.TrimRight(r.output, "\n")
		if r.status != 0 {
			return r.output, fmt.Errorf("%w: status %d\n--- script\n%s\n--- output\n%s",
				ErrScript, r.status, strings.TrimSpace(script), lastOutput(r.output))
		}
		return r.output, nil
	case <-ctx.Done():
		a.mu.Lock()
		partial := strings.Join(a.output, "\n")
		a.result, a.output = nil, nil
		a.mu.Unlock()
		return partial, fmt.Errorf(
			"waiting for a script in the guest: %w\n--- script\n%s\n--- output so far\n%s",
			context.Cause(ctx), strings.TrimSpace(script), lastOutput(partial))
	}
}

// Ready waits for the next boot that no earlier call has returned.
func (a *Agent) Ready(ctx context.Context) (Boot, error) {
	select {
	case b := <-a.boots:
		return b, nil
	case <-ctx.Done():
		return Boot{}, fmt.Errorf("waiting for the guest to start: %w", context.Cause(ctx))
	}
}

// Close closes the port.
func (a *Agent) Close() { a.port.Close() }
