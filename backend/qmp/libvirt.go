package qmp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"github.com/digitalocean/go-qemu/qmp"
)

// Libvirt identifies a domain of a libvirt daemon on this machine.
type Libvirt struct {
	URI    string // such as qemu:///system or qemu:///session, optionally with ?socket=PATH
	Domain string // its name

	uri     string   // without query parameters
	sockets []string // tried in order
}

// ParseLibvirt parses a URI and determines the daemon's sockets.
func ParseLibvirt(uri, domain string) (Libvirt, error) {
	bad := func(why string) (Libvirt, error) {
		return Libvirt{}, fmt.Errorf("libvirt URI %q: %s: expected DRIVER:///PATH, such as "+
			"qemu:///system", uri, why)
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
		return Libvirt{}, fmt.Errorf("libvirt URI %q: the domain's name is missing: add --domain "+
			"NAME", uri)
	}
	l := Libvirt{URI: uri, Domain: domain, uri: u.Scheme + "://" + u.Path}
	dir := "/run/libvirt"
	s := u.Query().Get("socket")
	if u.Path == "/session" && s == "" {
		run := os.Getenv("XDG_RUNTIME_DIR")
		if !filepath.IsAbs(run) {
			return bad(fmt.Sprintf("XDG_RUNTIME_DIR is %q, where the session's sockets are: set "+
				"it to an absolute path, or add ?socket=PATH", run))
		}
		dir = filepath.Join(run, "libvirt")
	}
	if s != "" {
		l.sockets = []string{s}
	} else {
		// The daemon for all drivers, or the driver's own.
		own := "virt" + u.Scheme + "d-sock"
		l.sockets = []string{filepath.Join(dir, "libvirt-sock"), filepath.Join(dir, own)}
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

// LibvirtFreeze freezes a domain's file systems through libvirt, which owns the channel to the
// guest agent.
type LibvirtFreeze struct {
	at       Libvirt
	frozen   bool   // freeze was sent and may have been executed
	recorded string // recorded instance; empty: unknown
}

// NewLibvirtFreeze returns a Quiescer that connects for each call.
func NewLibvirtFreeze(at Libvirt) *LibvirtFreeze { return &LibvirtFreeze{at: at} }

// Identify checks that the domain runs and that its agent answers. A later freeze error of libvirt
// does not tell a missing agent from one that failed during the freeze.
func (f *LibvirtFreeze) Identify(ctx context.Context) (instance string, err error) {
	return f.at.identify(ctx, func(l *libvirt.Libvirt, dom libvirt.Domain) error {
		// The guest's time is not needed. Errors of an agent that answers are ignored.
		if _, _, err := l.DomainGetTime(dom, 0); notExecuted(err) || noAgent(err) {
			return err
		}
		return nil
	})
}

// errNotRunning: the domain is defined and off.
var errNotRunning = errors.New("the domain is not running")

// domainInstance returns the instance of a domain. libvirt gives each run another id, and -1 to a
// domain that is off.
func domainInstance(dom libvirt.Domain) (string, error) {
	switch {
	case dom.Name == "":
		return "", errors.New("libvirt's answer is empty: the connection was lost")
	case dom.ID < 0:
		return "", errNotRunning
	}
	return instanceDomain + strconv.Itoa(int(dom.ID)), nil
}

// hasCode reports whether err is one of these errors of libvirt (include/libvirt/virterror.h).
func hasCode(err error, codes ...libvirt.ErrorNumber) bool {
	var e libvirt.Error
	return errors.As(err, &e) && slices.Contains(codes, libvirt.ErrorNumber(e.Code))
}

// notExecuted reports whether libvirt's error says that the command never reached the guest: the
// domain has no agent or does not run, or this user lacks permission.
func notExecuted(err error) bool {
	return hasCode(err, libvirt.ErrNoSupport, libvirt.ErrOperationDenied, libvirt.ErrNoDomain,
		libvirt.ErrOperationInvalid, libvirt.ErrConfigUnsupported, libvirt.ErrArgumentUnsupported,
		libvirt.ErrOperationUnsupported, libvirt.ErrAccessDenied, libvirt.ErrAuthUnavailable)
}

// noAgent reports whether the error says that the agent does not answer.
func noAgent(err error) bool {
	return hasCode(err, libvirt.ErrAgentUnresponsive, libvirt.ErrAgentUnsynced)
}

// noGuest reports whether an error of a thaw says that no guest can be frozen.
func noGuest(err error) bool {
	return errors.Is(err, errNotRunning) ||
		hasCode(err, libvirt.ErrNoDomain, libvirt.ErrOperationInvalid,
			libvirt.ErrArgumentUnsupported)
}

// checkRun returns ErrGone if the recorded run of a domain is known and another one than now.
func checkRun(recorded, now string) error {
	if recorded != "" && now != recorded {
		return fmt.Errorf("%w: expected %s, found %s", ErrGone, recorded, now)
	}
	return nil
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

// Thaw thaws what Freeze has frozen, or may have frozen.
func (f *LibvirtFreeze) Thaw(ctx context.Context) error {
	if !f.frozen {
		return nil
	}
	return f.ForceThaw(ctx)
}

// ForceThaw thaws the guest even if another process froze it.
func (f *LibvirtFreeze) ForceThaw(ctx context.Context) error {
	thaw := func(l *libvirt.Libvirt, dom libvirt.Domain) error {
		now, err := domainInstance(dom)
		if err == nil {
			err = checkRun(f.recorded, now)
		}
		if err == nil {
			_, err = l.DomainFsthaw(dom, nil, 0)
		}
		return err
	}
	advice := "run virsh domfsthaw " + f.at.Domain
	err := retry(ctx, "thawing", advice, func(ctx context.Context) error {
		err := f.at.withDomain(ctx, thaw)
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

// domainFunc makes calls about a domain on a connection.
type domainFunc func(*libvirt.Libvirt, libvirt.Domain) error

// withDomain connects, runs do and disconnects, until ctx ends. go-libvirt has no contexts; closing
// the connection makes it return. It takes a lost connection for an empty reply, so do must only
// make calls whose reply has content. Its goroutines end with the connection.
func (l Libvirt) withDomain(ctx context.Context, do domainFunc) error {
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
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

// NewLibvirtPause returns a Quiescer that runs stop and cont through go-qemu's libvirt monitor.
// go-qemu supports only qemu:///system.
func NewLibvirtPause(at Libvirt) (*Pause, error) {
	if at.uri != string(libvirt.QEMUSystem) {
		return nil, fmt.Errorf("libvirt URI %q: pausing through libvirt is possible with %s "+
			"only: quiesce the guest instead", at.URI, libvirt.QEMUSystem)
	}
	return NewPause(&libvirtRunner{at}), nil
}

// libvirtPause is a Pause of a known run of the domain.
type libvirtPause struct {
	*Pause
	at       Libvirt
	recorded string // recorded instance; empty: unknown
}

// Identify implements Quiescer.
func (p *libvirtPause) Identify(ctx context.Context) (instance string, err error) {
	if instance, err = p.at.identify(ctx, nil); err != nil {
		return "", err
	}
	_, err = p.Pause.Identify(ctx)
	return instance, err
}

// ForceThaw is Pause.ForceThaw, but returns ErrGone for a domain that is off, whose monitor does
// not answer.
func (p *libvirtPause) ForceThaw(ctx context.Context) error {
	if err := p.ifGone(ctx, nil); err != nil {
		return err
	}
	return p.Pause.ForceThaw(ctx)
}

// ifGone returns ErrGone if libvirt says that the recorded run of the domain has ended, else err. A
// libvirt that does not answer says nothing about the guest.
func (p *libvirtPause) ifGone(ctx context.Context, err error) error {
	now, qerr := p.at.identify(ctx, nil)
	switch {
	case noGuest(qerr):
		return fmt.Errorf("%w: %w", ErrGone, qerr)
	case qerr == nil:
		return cmp.Or(checkRun(p.recorded, now), err)
	}
	return err
}

// identify returns the instance of the domain, which must run and pass check; nil: no check.
func (l Libvirt) identify(ctx context.Context, check domainFunc) (instance string, err error) {
	err = l.withDomain(ctx, func(c *libvirt.Libvirt, dom libvirt.Domain) error {
		if instance, err = domainInstance(dom); err == nil && check != nil {
			err = check(c, dom)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("domain %s of %s: %w", l.Domain, l.URI, err)
	}
	return instance, nil
}

// libvirtRunner runs each command on a new connection.
type libvirtRunner struct{ at Libvirt }

func (r *libvirtRunner) Run(ctx context.Context, command string, args, out any) error {
	conn, err := r.at.dial(ctx)
	if err != nil {
		return fmt.Errorf("libvirt %s: %w", r.at.URI, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
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

// packetConn checks the length of libvirt's packets before go-libvirt reads them: go-libvirt
// allocates any length and panics on one shorter than a header. The peer may not be libvirt
// (libvirt, src/rpc/virnetprotocol.x).
type packetConn struct {
	net.Conn
	head [4]byte // length of the packet, big-endian, including itself
	have int     // bytes of head received
	left uint32  // bytes of the packet not received yet
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
			return 0, fmt.Errorf("packet of %d bytes, expected %d to %d: is this libvirt's socket?",
				length, packetHeader, packetMax)
		}
		c.have, c.left = 0, length-uint32(len(c.head))
	}
	return n, err
}
