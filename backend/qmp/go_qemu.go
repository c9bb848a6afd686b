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

// GoQEMU adapts a connected go-qemu monitor. Because it has no deadlines, Run returns when ctx ends
// and disconnects the monitor, which cannot be used any more. Errors of the monitor have no class.
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
		// go-libvirt slices a reply without checking its length.
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
		// In the background, because libvirt's monitor waits for its peer here, too. Closing the
		// connection, which the caller owns, ends both.
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
