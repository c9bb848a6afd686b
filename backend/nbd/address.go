package nbd

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/mdlayher/vsock"

	"cowblk/backend/control"
)

// anyCID is VMADDR_CID_ANY: a vsock listener accepts connections to every CID of this machine.
const anyCID = ^uint32(0)

// Address is an address to listen on.
type Address struct {
	Network string // "unix", "tcp" or "vsock"
	Path    string // of a UNIX socket
	Host    string // of TCP: a name or an IP address
	CID     uint32 // of vsock; anyCID: all CIDs of this machine
	Port    uint32 // of TCP and vsock; 0: the kernel chooses one
}

// ParseAddress parses unix:PATH, tcp:HOST:PORT, tcp:PORT (on the loopback interface),
// vsock:CID:PORT or vsock:any:PORT. It returns an ErrAddress with the reason.
func ParseAddress(s string) (Address, error) {
	network, rest, _ := strings.Cut(s, ":")
	a := Address{Network: network}
	bad := func(format string, args ...any) (Address, error) {
		return Address{}, fmt.Errorf("%w %q: %s: expected unix:PATH, tcp:HOST:PORT or "+
			"vsock:CID:PORT", ErrAddress, s, fmt.Sprintf(format, args...))
	}
	switch network {
	case "unix":
		if rest == "" || strings.ContainsRune(rest, 0) {
			return bad("the path is missing or has a zero byte")
		}
		a.Path = rest
		return a, nil
	case "tcp":
		host, port := "", rest
		if strings.Contains(rest, ":") {
			var err error
			if host, port, err = net.SplitHostPort(rest); err != nil {
				return bad("host and port cannot be told apart " +
					"(an IPv6 address goes into brackets)")
			}
		}
		n, err := parseNumber(port, 16)
		if err != nil {
			return bad("%q is not a port from 0 to 65535", port)
		}
		if strings.ContainsAny(host, "/\x00 ") {
			return bad("%q is not a host", host)
		}
		if host == "" {
			host = "127.0.0.1"
		}
		a.Host, a.Port = host, n
		return a, nil
	case "vsock":
		cid, port, found := strings.Cut(rest, ":")
		if !found {
			return bad("the port is missing")
		}
		n, err := parseNumber(port, 32)
		if err != nil || n == ^uint32(0) {
			return bad("%q is not a port", port)
		}
		a.Port, a.CID = n, anyCID
		if cid == "any" {
			return a, nil
		}
		if a.CID, err = parseNumber(cid, 32); err != nil {
			return bad("%q is not a CID (a number, or any)", cid)
		}
		return a, nil
	}
	return bad("%q is not a kind of address", network)
}

// parseNumber accepts only digits: no sign, no blanks.
func parseNumber(s string, bits int) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	return uint32(n), err
}

// String returns the form that ParseAddress accepts.
func (a Address) String() string {
	port := strconv.FormatUint(uint64(a.Port), 10)
	switch a.Network {
	case "unix":
		return "unix:" + a.Path
	case "vsock":
		cid := "any"
		if a.CID != anyCID {
			cid = strconv.FormatUint(uint64(a.CID), 10)
		}
		return "vsock:" + cid + ":" + port
	}
	return "tcp:" + net.JoinHostPort(a.Host, port)
}

// URI returns the URI of an export, as in the NBD project's doc/uri.md. For a listener on all
// addresses it has localhost, or the CID that guests use for the host.
func (a Address) URI(export string) string {
	switch a.Network {
	case "unix":
		return "nbd+unix:///" + escape(export) + "?socket=" + escape(a.Path)
	case "vsock":
		cid := a.CID
		if cid == anyCID {
			cid = vsock.Host
		}
		return fmt.Sprintf("nbd+vsock://%d:%d/%s", cid, a.Port, escape(export))
	}
	host := a.Host
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	host = strings.ReplaceAll(host, "%", "%25") // a zone
	return "nbd://" + net.JoinHostPort(host, strconv.FormatUint(uint64(a.Port), 10)) + "/" +
		escape(export)
}

// escape escapes everything except characters that all URI parsers accept unescaped. net/url does
// not suffice: clients do not decode + as a blank, and & ends a part of a query.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9',
			strings.IndexByte("-._~/@", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// listen opens the socket. The returned address has the chosen port and an absolute path.
func (a Address) listen(group string) (net.Listener, Address, error) {
	switch a.Network {
	case "unix":
		path, err := filepath.Abs(a.Path)
		if err != nil {
			return nil, a, err
		}
		a.Path = path
		l, err := control.ListenUnix(path, group)
		if err != nil {
			return nil, a, err // not a nil *Listener in an interface
		}
		return l, a, nil
	case "tcp":
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp",
			net.JoinHostPort(a.Host, strconv.FormatUint(uint64(a.Port), 10)))
		if err != nil {
			return nil, a, err
		}
		a.Port = uint32(l.Addr().(*net.TCPAddr).Port)
		return l, a, nil
	case "vsock":
		l, err := vsock.ListenContextID(a.CID, a.Port, nil)
		if err != nil {
			return nil, a, fmt.Errorf("%w (is the module vhost_vsock or vsock_loopback loaded, "+
				"and is %d a CID of this machine?)", err, a.CID)
		}
		a.Port = l.Addr().(*vsock.Addr).Port
		return l, a, nil
	}
	return nil, a, fmt.Errorf("%w: network %q", ErrAddress, a.Network)
}
