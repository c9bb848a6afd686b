package harness

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"sync"
)

// Port is the host's end of a guest's serial port: a UNIX socket on which QEMU
// connects before the guest runs, so that not a byte is lost.
type Port struct {
	Path string

	listener *net.UnixListener
	log      tail
	ended    chan struct{} // the reader's end

	mu      sync.Mutex
	conn    net.Conn
	unread  []byte        // not yet consumed by Expect
	changed chan struct{} // closed and replaced when unread grows
	lines   func(string)  // receives whole lines instead of Expect
}

// unreadBytes bounds what a Port keeps for Expect.
const unreadBytes = 1 << 20

// ListenPort creates the socket. With lines, each whole line (without its end)
// goes to that function, on the port's goroutine, and Expect must not be used.
func ListenPort(path string, lines func(string)) (*Port, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("serial port: %w", err)
	}
	p := &Port{Path: path, listener: l, ended: make(chan struct{}), changed: make(chan struct{}), lines: lines}
	go p.read()
	return p, nil
}

// read serves one connection after the other: a machine defined in libvirt may
// be started more than once on the same ports.
func (p *Port) read() {
	defer close(p.ended)
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.conn = conn
		p.mu.Unlock()
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				_, _ = p.log.Write(buf[:n])
				p.arrived(buf[:n])
			}
			if err != nil {
				break
			}
		}
		_ = conn.Close()
	}
}

func (p *Port) arrived(b []byte) {
	p.mu.Lock()
	p.unread = append(p.unread, b...)
	if p.lines == nil {
		if extra := len(p.unread) - unreadBytes; extra > 0 {
			p.unread = p.unread[extra:]
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
		return
	}
	var whole []string
	for {
		i := bytes.IndexByte(p.unread, '\n')
		if i < 0 {
			break
		}
		whole = append(whole, string(bytes.TrimRight(p.unread[:i], "\r")))
		p.unread = p.unread[i+1:]
	}
	p.mu.Unlock()
	for _, line := range whole {
		p.lines(line)
	}
}

// Expect waits until the port has printed something that matches, consumes it
// and all before it, and returns the match and its groups.
func (p *Port) Expect(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	for {
		p.mu.Lock()
		if at := re.FindSubmatchIndex(p.unread); at != nil {
			match := re.FindStringSubmatch(string(p.unread[at[0]:at[1]]))
			p.unread = p.unread[at[1]:]
			p.mu.Unlock()
			return match, nil
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %q on the console: %w", pattern, context.Cause(ctx))
		}
	}
}

// Write sends to the guest.
func (p *Port) Write(b []byte) (int, error) {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return 0, fmt.Errorf("serial port %s: no machine is connected", p.Path)
	}
	return conn.Write(b)
}

// Tail returns the last of what the port printed.
func (p *Port) Tail() string { return p.log.String() }

// Close ends the port and waits for its goroutine.
func (p *Port) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	<-p.ended
}
