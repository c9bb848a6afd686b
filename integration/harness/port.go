package harness

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"
)

// Port is the host's end of a guest's serial port: a UNIX socket. QEMU connects to it before the
// guest runs, so no byte is lost.
type Port struct {
	Path string
	Transcript

	listener *net.UnixListener
	ended    chan struct{} // closed when the reader has ended
	lines    func(string)  // receives whole lines instead of Expect
	partial  []byte        // unfinished line; owned by the reader

	mu   sync.Mutex
	conn net.Conn
}

// ListenPort creates the socket. If lines is not nil, the port's goroutine calls it with each whole
// line (without its end), and Expect must not be used.
func ListenPort(path string, lines func(string)) (*Port, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("serial port: %w", err)
	}
	p := &Port{Path: path, listener: l, ended: make(chan struct{}), lines: lines}
	go p.read()
	return p, nil
}

// read serves one connection after another: libvirt may start a domain more than once on the same
// ports.
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
			_, _ = p.Transcript.Write(buf[:n]) // memory: cannot fail
			if p.lines != nil {
				p.split(buf[:n])
			}
			if err != nil {
				break
			}
		}
		_ = conn.Close()
	}
}

func (p *Port) split(b []byte) {
	p.partial = append(p.partial, b...)
	for {
		i := bytes.IndexByte(p.partial, '\n')
		if i < 0 {
			return
		}
		p.lines(string(bytes.TrimRight(p.partial[:i], "\r")))
		p.partial = p.partial[i+1:]
	}
}

// Write sends b to the guest.
func (p *Port) Write(b []byte) (int, error) {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return 0, fmt.Errorf("serial port %s: no machine is connected", p.Path)
	}
	return conn.Write(b)
}

// Close closes the port and waits for its goroutine.
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
