package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Backend is a process that serves a vhost-user-blk socket.
type Backend struct {
	*Process
	Socket string
}

// Serve starts "cowblk serve" for one disk and waits until it listens on socket. ctx bounds the
// start only.
func (s *Store) Serve(ctx context.Context, name, socket string) (*Backend, error) {
	return StartBackend(ctx, s.Cmd("serve", name, "--socket-path", socket), socket)
}

// StartBackend starts a back-end and waits until it listens on socket.
func StartBackend(ctx context.Context, cmd *exec.Cmd, socket string) (*Backend, error) {
	p, err := StartProcess("back-end "+socket, cmd)
	if err != nil {
		return nil, err
	}
	if err := p.waitListening(ctx, socket); err != nil {
		p.Kill()
		return nil, err
	}
	return &Backend{Process: p, Socket: socket}, nil
}

// waitListening waits until any process listens on socket; p may delegate to another process.
func (p *Process) waitListening(ctx context.Context, socket string) error {
	for {
		ok, err := listening(socket)
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(dialPause):
		case <-p.Done():
			if err := p.Wait(ctx); err != nil {
				return err
			}
			return fmt.Errorf("%s: ended without listening on %s\n%s", p.Name, socket, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s: does not listen on %s: %w\n%s", p.Name, socket,
				context.Cause(ctx), p.Output())
		}
	}
}

// Flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON of the kernel's include/linux/net.h,
// in hexadecimal).
const acceptsConnections = "00010000"

// listening reports whether a process listens on socket. It does not connect: the back-end would
// take the connection for a front-end.
func listening(socket string) (bool, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) == 8 && f[3] == acceptsConnections && f[7] == socket {
			return true, nil
		}
	}
	return false, nil
}
