package qmp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/digitalocean/go-qemu/qmp"
)

// Libvirt names a domain of a libvirt daemon on this machine.
type Libvirt struct {
	URI    string // such as qemu:///system or qemu:///session, with ?socket=PATH if that is elsewhere
	Domain string // its name

	uri     string   // without our parameters
	sockets []string // to be tried in order
}

// ParseLibvirt checks a URI and finds the daemon's sockets.
func ParseLibvirt(uri, domain string) (Libvirt, error) {
	bad := func(why string) (Libvirt, error) {
		return Libvirt{}, fmt.Errorf("libvirt URI %q: %s: expected DRIVER:///PATH, such as qemu:///system", uri, why)
	}
	u, err := url.Parse(uri)
	switch {
	case err != nil:
		return bad(err.Error())
	case u.Host != "" || strings.Contains(u.Scheme, "+"):
		return bad("only daemons on this machine can be reached")
	case u.Scheme == "" || len(u.Path) < 2:
		return bad("driver or path is missing")
	case domain == "":
		return Libvirt{}, fmt.Errorf("libvirt URI %q: the domain's name is missing: add --domain NAME", uri)
	}
	l := Libvirt{URI: uri, Domain: domain, uri: u.Scheme + "://" + u.Path}
	dir := "/run/libvirt"
	s := u.Query().Get("socket")
	if u.Path == "/session" && s == "" {
		run := os.Getenv("XDG_RUNTIME_DIR")
		if !filepath.IsAbs(run) {
			return bad(fmt.Sprintf("XDG_RUNTIME_DIR is %q, where the session's sockets are: set it to an absolute path, or add ?socket=PATH", run))
		}
		dir = filepath.Join(run, "libvirt")
	}
	if s != "" {
		l.sockets = []string{s}
	} else {
		// The one daemon for all drivers, or the driver's own.
		l.sockets = []string{filepath.Join(dir, "libvirt-sock"), filepath.Join(dir, "virt"+u.Scheme+"d-sock")}
	}
	return l, nil
}

// dial connects to the first socket that answers.
func (l Libvirt) dial(ctx context.Context) (net.Conn, error) {
	var errs []error
	var d net.Dialer
	for _, s := range l.sockets {
		conn, err := d.DialContext(ctx, "unix", s)
		if err == nil {
			return &packetConn{Conn: conn}, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// LibvirtFreeze freezes a domain's file systems through libvirt, which owns the
// channel to the guest agent.
type LibvirtFreeze struct {
	at       Libvirt
	frozen   bool   // freeze was sent and may have been executed
	recorded string // the instance of a note; empty: not known
}

// NewLibvirtFreeze returns a Quiescer that connects for each call.
func NewLibvirtFreeze(at Libvirt) *LibvirtFreeze { return &LibvirtFreeze{at: at} }

// Identify finds the domain, which has to run, and its agent, which has to answer: libvirt's errors of a freeze do not
// tell an agent that was not there from one that went away in the middle.
func (f *LibvirtFreeze) Identify(ctx context.Context) (instance string, err error) {
	err = f.at.withDomain(ctx, func(l *libvirt.Libvirt, dom libvirt.Domain) error {
		if instance, err = domainInstance(dom); err != nil {
			return err
		}
		// The time that the guest has is of no use here, and harmless. An agent that does not tell it, but freezes, is all
		// the same.
		if _, _, err := l.DomainGetTime(dom, 0); notExecuted(err) || noAgent(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("domain %s of %s: %w", f.at.Domain, f.at.URI, err)
	}
	return instance, nil
}

// errNotRunning: the domain is defined and off.
var errNotRunning = errors.New("the domain is not running")

// domainInstance names the run of a domain: libvirt gives each another id, and -1 to one that is off.
func domainInstance(dom libvirt.Domain) (string, error) {
	switch {
	case dom.Name == "":
		return "", errors.New("libvirt's answer is empty: the connection was lost")
	case dom.ID < 0:
		return "", errNotRunning
	}
	return instanceDomain + strconv.Itoa(int(dom.ID)), nil
}

// notExecuted are libvirt's errors of commands that never reached the guest: there is no agent in the domain's
// configuration, the domain does not run, this user may not (include/libvirt/virterror.h).
func notExecuted(err error) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	switch libvirt.ErrorNumber(e.Code) {
	case libvirt.ErrNoSupport, libvirt.ErrOperationDenied, libvirt.ErrNoDomain, libvirt.ErrOperationInvalid, libvirt.ErrConfigUnsupported,
		libvirt.ErrArgumentUnsupported, libvirt.ErrOperationUnsupported, libvirt.ErrAccessDenied, libvirt.ErrAuthUnavailable:
		return true
	}
	return false
}

// noAgent are those of an agent that does not answer.
func noAgent(err error) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	switch libvirt.ErrorNumber(e.Code) {
	case libvirt.ErrAgentUnresponsive, libvirt.ErrAgentUnsynced:
		return true
	}
	return false
}

// noGuest are those of thawing that say that there is no guest which could be frozen.
func noGuest(err error) bool {
	var e libvirt.Error
	if !errors.As(err, &e) {
		return errors.Is(err, errNotRunning)
	}
	switch libvirt.ErrorNumber(e.Code) {
	case libvirt.ErrNoDomain, libvirt.ErrOperationInvalid, libvirt.ErrArgumentUnsupported:
		return true
	}
	return false
}

// Freeze freezes all of the guest's file systems.
func (f *LibvirtFreeze) Freeze(ctx context.Context) error {
	err := f.at.withDomain(ctx, func(l *libvirt.Libvirt, dom libvirt.Domain) error {
		f.frozen = true
		_, err := l.DomainFsfreeze(dom, nil, 0)
		return err
	})
	if notExecuted(err) {
		f.frozen = false
	}
	if err != nil {
		return fmt.Errorf("freeze domain %s of %s: %w", f.at.Domain, f.at.URI, err)
	}
	return nil
}

// Thaw thaws what Freeze has frozen or may have.
func (f *LibvirtFreeze) Thaw(ctx context.Context) error {
	if !f.frozen {
		return nil
	}
	return f.Release(ctx)
}

// Release thaws the guest, whoever froze it: for a process that was killed between
// Freeze and Thaw and finds a note of its own about it.
func (f *LibvirtFreeze) Release(ctx context.Context) error {
	err := retry(ctx, "thawing", "run virsh domfsthaw "+f.at.Domain, func(ctx context.Context) error {
		err := f.at.withDomain(ctx, func(l *libvirt.Libvirt, dom libvirt.Domain) error {
			now, err := domainInstance(dom)
			if err != nil {
				return err
			}
			if f.recorded != "" && now != f.recorded {
				return fmt.Errorf("%w: expected %s, found %s", ErrGone, f.recorded, now)
			}
			_, err = l.DomainFsthaw(dom, nil, 0)
			return err
		})
		if noGuest(err) {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("thaw domain %s of %s: %w", f.at.Domain, f.at.URI, err)
	}
	f.frozen = false
	return nil
}

// withDomain connects, runs do and disconnects, all until ctx ends. go-libvirt knows no
// contexts: closing the connection makes it return. It takes a lost connection for an
// empty reply, so do must only make calls whose reply has content. Its goroutines end
// with the connection.
func (l Libvirt) withDomain(ctx context.Context, do func(*libvirt.Libvirt, libvirt.Domain) error) error {
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c := libvirt.NewWithDialer(dialers.NewAlreadyConnected(conn))
	if err = c.ConnectToURI(libvirt.ConnectURI(l.uri)); err == nil {
		var dom libvirt.Domain
		if dom, err = c.DomainLookupByName(l.Domain); err == nil {
			err = do(c, dom)
		}
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// NewLibvirtPause returns a Quiescer that runs stop and cont through go-qemu's libvirt
// monitor, next to libvirt's own. go-qemu opens qemu:///system and nothing else.
func NewLibvirtPause(at Libvirt) (*Pause, error) {
	if at.uri != string(libvirt.QEMUSystem) {
		return nil, fmt.Errorf("libvirt URI %q: pausing through libvirt is possible with %s only: quiesce the guest instead", at.URI, libvirt.QEMUSystem)
	}
	return NewPause(&libvirtRunner{at}), nil
}

// libvirtPause is a Pause that knows which run of the domain it is about.
type libvirtPause struct {
	*Pause
	at       Libvirt
	recorded string // the instance of a note; empty: not known
}

// Identify implements Quiescer.
func (p *libvirtPause) Identify(ctx context.Context) (instance string, err error) {
	if instance, err = p.at.identify(ctx); err != nil {
		return "", err
	}
	_, err = p.Pause.Identify(ctx)
	return instance, err
}

// release is Resume, or ErrGone: a domain that is off answers no monitor.
func (p *libvirtPause) release(ctx context.Context) error {
	if err := p.gone(ctx); err != nil {
		return err
	}
	return p.Resume(ctx)
}

func (p *libvirtPause) gone(ctx context.Context) error {
	now, err := p.at.identify(ctx)
	switch {
	case noGuest(err):
		return fmt.Errorf("%w: %w", ErrGone, err)
	case err == nil && p.recorded != "" && now != p.recorded:
		return fmt.Errorf("%w: expected %s, found %s", ErrGone, p.recorded, now)
	}
	return nil
}

// identify finds the domain, which has to run.
func (l Libvirt) identify(ctx context.Context) (instance string, err error) {
	err = l.withDomain(ctx, func(_ *libvirt.Libvirt, dom libvirt.Domain) error {
		instance, err = domainInstance(dom)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("domain %s of %s: %w", l.Domain, l.URI, err)
	}
	return instance, nil
}

// libvirtRunner runs each command on a connection of its own.
type libvirtRunner struct{ at Libvirt }

func (r *libvirtRunner) Run(ctx context.Context, command string, args, out any) error {
	conn, err := r.at.dial(ctx)
	if err != nil {
		return fmt.Errorf("libvirt %s: %w", r.at.URI, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	mon := qmp.NewLibvirtRPCMonitor(r.at.Domain, conn)
	if err = mon.Connect(); err == nil {
		err = GoQEMU(mon).Run(ctx, command, args, out)
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("libvirt %s, domain %s: %w", r.at.URI, r.at.Domain, err)
	}
	return nil
}

// packetConn checks libvirt's packets on their way to go-libvirt, which allocates any
// length that it is told and panics on one shorter than a header: a wrong socket's
// first bytes must do neither (libvirt, src/rpc/virnetprotocol.x).
type packetConn struct {
	net.Conn
	head [4]byte // length of the packet, big-endian, itself included
	have int     // bytes of head seen
	left uint32  // bytes of the packet still to come
}

const (
	packetHeader = 28          // bytes: length, program, version, procedure, type, serial, status
	packetMax    = 32<<20 + 28 // VIR_NET_MESSAGE_MAX and its length
)

func (c *packetConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.left > 0 {
			k := min(len(rest), int(c.left))
			rest, c.left = rest[k:], c.left-uint32(k)
			continue
		}
		k := copy(c.head[c.have:], rest)
		rest, c.have = rest[k:], c.have+k
		if c.have < len(c.head) {
			break
		}
		length := binary.BigEndian.Uint32(c.head[:])
		if length < packetHeader || length > packetMax {
			return 0, fmt.Errorf("packet of %d bytes, expected %d to %d: is this libvirt's socket?", length, packetHeader, packetMax)
		}
		c.have, c.left = 0, length-uint32(len(c.head))
	}
	return n, err
}
