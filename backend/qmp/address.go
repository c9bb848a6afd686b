package qmp

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// Address is the address of a stream socket: "unix:PATH" or "vsock:CID:PORT".
type Address struct {
	Path      string // of a UNIX socket; empty: vsock
	CID, Port uint32
}

// ParseAddress parses an address.
func ParseAddress(s string) (Address, error) {
	kind, rest, _ := strings.Cut(s, ":")
	bad := func(found string) (Address, error) {
		return Address{}, fmt.Errorf("address %q: %s: expected unix:PATH or vsock:CID:PORT",
			s, found)
	}
	switch kind {
	case "unix":
		if rest == "" {
			return bad("the path is missing")
		}
		if limit := len(unix.RawSockaddrUnix{}.Path) - 1; len(rest) > limit {
			return bad(
				fmt.Sprintf("the path has %d bytes, at most %d are possible", len(rest), limit))
		}
		return Address{Path: rest}, nil
	case "vsock":
		cid, port, ok := strings.Cut(rest, ":")
		if !ok {
			return bad("the port is missing")
		}
		c, err := parseUint32(cid)
		if err != nil {
			return bad(fmt.Sprintf("%q is not a CID", cid))
		}
		p, err := parseUint32(port)
		if err != nil {
			return bad(fmt.Sprintf("%q is not a port", port))
		}
		return Address{CID: c, Port: p}, nil
	}
	return bad(fmt.Sprintf("%q is not a kind of address", kind))
}

// parseUint32 refuses the maximum, which is VMADDR_CID_ANY and VMADDR_PORT_ANY and cannot be
// connected to.
func parseUint32(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && (n == math.MaxUint32 || s[0] == '+') {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

// String returns the form that ParseAddress accepts.
func (a Address) String() string {
	if a.Path != "" {
		return "unix:" + a.Path
	}
	return fmt.Sprintf("vsock:%d:%d", a.CID, a.Port)
}

// Same reports whether a and b are the same socket, also through different paths, without
// connecting.
func (a Address) Same(b Address) bool {
	if a == b {
		return true
	}
	if a.Path == "" || b.Path == "" {
		return false
	}
	fa, err := os.Stat(a.Path)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b.Path)
	return err == nil && os.SameFile(fa, fb)
}

// dial connects until ctx ends.
func (a Address) dial(ctx context.Context) (net.Conn, error) {
	if a.Path != "" {
		var d net.Dialer
		return d.DialContext(ctx, "unix", a.Path)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// vsock.Dial has no context, but the kernel gives up after two seconds
		// (SO_VM_SOCKETS_CONNECT_TIMEOUT).
		conn, err := vsock.Dial(a.CID, a.Port, nil)
		if err != nil {
			done <- result{nil, err} // not a nil *vsock.Conn in an interface
			return
		}
		done <- result{conn, nil}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}
