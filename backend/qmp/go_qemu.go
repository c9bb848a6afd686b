package qmp

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/digitalocean/go-qemu/qmp"

	"cowblk/backend/control"
)

// goQEMU runs commands on a monitor of go-qemu.
type goQEMU struct{ mon qmp.Monitor }

// GoQEMU adapts any of go-qemu's monitors, connected already. It knows no deadlines:
// Run returns at ctx's end and disconnects the monitor, which is of no use then.
// Errors that the monitor reports have no class.
func GoQEMU(mon qmp.Monitor) Runner { return goQEMU{mon} }

func (g goQEMU) Run(ctx context.Context, command string, args, out any) error {
	text, err := json.Marshal(qmp.Command{Execute: command, Args: args})
	if err != nil {
		return fmt.Errorf("%s: arguments: %w", command, err)
	}
	type result struct {
		reply []byte
		err   error
	}
	done := make(chan result, 1)
	go func() {
		// go-libvirt slices a reply without a look at its length.
		defer func() {
			if p := recover(); p != nil {
				done <- result{nil, fmt.Errorf("%w: %v", ErrDisconnected, p)}
			}
		}()
		reply, err := g.mon.Run(text)
		done <- result{reply, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		// In the background: libvirt's monitor waits for its peer even here. Whoever
		// made the connection closes it, which ends both.
		go g.mon.Disconnect()
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
	if r.err != nil {
		return fmt.Errorf("%s: %w", command, r.err)
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *control.Error  `json:"error"`
	}
	if err := json.Unmarshal(r.reply, &reply); err != nil {
		return fmt.Errorf("%s: reply: %w", command, err)
	}
	switch {
	case reply.Error != nil:
		return fmt.Errorf("%s: %w", command, reply.Error)
	case reply.Return == nil:
		return fmt.Errorf("%s: %w: the reply is empty", command, ErrDisconnected)
	case out != nil:
		if err := json.Unmarshal(reply.Return, out); err != nil {
			return fmt.Errorf("%s: reply: %w", command, err)
		}
	}
	return nil
}
