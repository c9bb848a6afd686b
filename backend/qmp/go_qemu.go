package qmp

import (
	"context"
	"encoding/json"
	"errors"
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
	if err := decodeReply(r.reply, out); err != nil {
		if errors.Is(err, errNeither) {
			err = fmt.Errorf("%w: the reply is empty", ErrDisconnected)
		}
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

var errNeither = errors.New("expected a return or an error, found neither")

// decodeReply unmarshals the value in the reply to a command into out unless that is nil. It
// returns the error in the reply (a *control.Error), or errNeither.
func decodeReply(text []byte, out any) error {
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *control.Error  `json:"error"`
	}
	err := json.Unmarshal(text, &reply)
	switch {
	case err == nil && reply.Error != nil:
		return reply.Error
	case err == nil && reply.Return == nil:
		err = errNeither
	case err == nil && out != nil:
		err = json.Unmarshal(reply.Return, out)
	}
	if err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	return nil
}
