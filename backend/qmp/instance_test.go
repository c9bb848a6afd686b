package qmp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digitalocean/go-libvirt"

	"cowblk/internal/test"
)

// xdrError encodes a libvirt error of the remote protocol (src/rpc/virnetprotocol.x,
// virNetMessageError).
func xdrError(code libvirt.ErrorNumber, message string) []byte {
	be := binary.BigEndian.AppendUint32
	b := be(be(nil, uint32(code)), 10) // code, domain
	b = be(b, 1)                       // a message follows
	b = be(b, uint32(len(message)))
	b = append(b, message...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = be(b, 2)                          // level
	return append(b, make([]byte, 40)...) // not read by go-libvirt
}

// procTime is the procedure of DomainGetTime.
const procTime = 337

// libvirtPeer is a fake libvirt daemon with a body or error for each procedure.
type libvirtPeer struct {
	id      int32 // of the domain; -1: it is off
	errors  map[uint32][]byte
	thaws   int
	freezes int
}

func (h *libvirtPeer) serve(conn net.Conn, in *bufio.Reader) {
	for {
		head := make([]byte, packetHeader)
		for i := range head {
			b, err := in.ReadByte()
			if err != nil {
				return
			}
			head[i] = b
		}
		proc := binary.BigEndian.Uint32(head[12:])
		if _, err := in.Discard(int(binary.BigEndian.Uint32(head)) - packetHeader); err != nil {
			return
		}
		body, status := []byte(nil), uint32(0)
		switch proc {
		case procAuth:
			body = []byte{0, 0, 0, 1, 0, 0, 0, 0}
		case procLookup:
			body = binary.BigEndian.AppendUint32(append([]byte{0, 0, 0, 4, 't', 'e', 's', 't'},
				make([]byte, 16)...), uint32(h.id))
		case procTime:
			body = make([]byte, 12)
		case procFreeze:
			h.freezes++
			body = []byte{0, 0, 0, 2}
		case procThaw:
			h.thaws++
			body = []byte{0, 0, 0, 2}
		}
		if e := h.errors[proc]; e != nil {
			body, status = e, 1
		}
		binary.BigEndian.PutUint32(head, uint32(packetHeader+len(body)))
		binary.BigEndian.PutUint32(head[16:], 1) // a reply
		binary.BigEndian.PutUint32(head[24:], status)
		conn.Write(append(head, body...))
	}
}

func (h *libvirtPeer) freezer(t *testing.T) *LibvirtFreeze {
	t.Helper()
	p := listen(t, h.serve)
	at, err := ParseLibvirt("qemu:///system?socket="+p.addr.Path, "test")
	test.Must(t, err)
	return NewLibvirtFreeze(at)
}

// A freeze that libvirt refuses before it reaches the guest needs no thaw.
func TestLibvirtRefusals(t *testing.T) {
	for _, tt := range []struct {
		proc    uint32
		code    libvirt.ErrorNumber
		message string
		certain bool
	}{
		{procLookup, libvirt.ErrNoDomain, "Domain not found: no domain with matching name 'test'",
			true},
		{procFreeze, libvirt.ErrArgumentUnsupported,
			"argument unsupported: QEMU guest agent is not configured", true},
		{procFreeze, libvirt.ErrOperationInvalid,
			"Requested operation is not valid: domain is not running", true},
		{procFreeze, libvirt.ErrAccessDenied, "access denied", true},
		{procFreeze, libvirt.ErrOperationDenied,
			"operation fsfreeze forbidden for read only access", true},
		{procFreeze, libvirt.ErrNoSupport, "this function is not supported", true},
		{procFreeze, libvirt.ErrAgentUnresponsive,
			"Guest agent is not responding: guest agent disappeared while executing command",
			false},
		{procFreeze, libvirt.ErrInternalError, "unable to execute QEMU agent command", false},
	} {
		t.Run(fmt.Sprint(tt.message), func(t *testing.T) {
			h := &libvirtPeer{id: 3, errors: map[uint32][]byte{tt.proc: xdrError(tt.code,
				tt.message)}}
			err := WhileQuiesced(within(t, waitTimeout), h.freezer(t), waitTimeout, waitTimeout,
				func(context.Context) error {
					t.Error("f was called")
					return nil
				})
			if err == nil || errors.Is(err, ErrNotThawed) {
				t.Errorf("%v", err)
			}
			if (h.thaws == 0) != tt.certain {
				t.Errorf("%d thaws, certain that nothing was frozen: %t", h.thaws, tt.certain)
			}
		})
	}
}

// A domain that is off cannot be quiesced, and gets no command.
func TestLibvirtIdentify(t *testing.T) {
	h := &libvirtPeer{id: 7}
	if instance, err := h.freezer(t).Identify(within(t, waitTimeout)); err != nil ||
		instance != "domain 7" {
		t.Errorf("%q, %v", instance, err)
	}
	h = &libvirtPeer{id: -1}
	test.ErrorIs(t, test.Err(h.freezer(t).Identify(within(t, waitTimeout))), errNotRunning,
		"of a domain that is off")
	for _, cause := range []string{
		"Guest agent is not responding: QEMU guest agent is not connected",
		"Guest agent is not responding: Guest agent not available for now"} {
		h = &libvirtPeer{id: 7,
			errors: map[uint32][]byte{procTime: xdrError(libvirt.ErrAgentUnresponsive, cause)}}
		if _, err := h.freezer(t).Identify(within(t, waitTimeout)); err == nil ||
			!strings.Contains(err.Error(), cause) {
			t.Errorf("%s: %v", cause, err)
		}
	}
	h = &libvirtPeer{id: 7, errors: map[uint32][]byte{procTime: xdrError(libvirt.ErrInternalError,
		"Command guest-get-time has been disabled")}}
	if instance, err := h.freezer(t).Identify(within(t, waitTimeout)); err != nil ||
		instance != "domain 7" {
		t.Errorf("of an agent that does not tell the time: %q, %v", instance, err)
	}
	h = &libvirtPeer{errors: map[uint32][]byte{procLookup: xdrError(libvirt.ErrNoDomain,
		"Domain not found")}}
	if _, err := h.freezer(t).Identify(within(t, waitTimeout)); err == nil {
		t.Error("of no domain")
	}
}

// A record of a guest that is off, was restarted or removed is resolved at once, without thawing
// another run.
func TestLibvirtGone(t *testing.T) {
	for name, tt := range map[string]struct {
		peer libvirtPeer
		gone bool
	}{
		"the same run": {libvirtPeer{id: 7}, false},
		"restarted":    {libvirtPeer{id: 8}, true},
		"off":          {libvirtPeer{id: -1}, true},
		"removed": {libvirtPeer{errors: map[uint32][]byte{
			procLookup: xdrError(libvirt.ErrNoDomain, "Domain not found")}}, true},
		"just ended": {libvirtPeer{id: 7,
			errors: map[uint32][]byte{procThaw: xdrError(libvirt.ErrOperationInvalid,
				"domain is not running")}}, true},
		"no agent after all": {libvirtPeer{id: 7,
			errors: map[uint32][]byte{procThaw: xdrError(libvirt.ErrArgumentUnsupported,
				"QEMU guest agent is not configured")}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := tt.peer.freezer(t)
			f.recorded = "domain 7"
			err := f.ForceThaw(within(t, waitTimeout))
			if errors.Is(err, ErrGone) != tt.gone || !tt.gone && err != nil {
				t.Errorf("%v", err)
			}
			if tt.gone && tt.peer.errors[procThaw] == nil && tt.peer.thaws > 0 || !tt.gone &&
				tt.peer.thaws != 1 {
				t.Errorf("%d thaws", tt.peer.thaws)
			}
		})
	}
}

// The same for a guest paused through libvirt: a domain that is off has no monitor.
func TestLibvirtPauseGone(t *testing.T) {
	for name, peer := range map[string]*libvirtPeer{
		"restarted": {id: 8}, "off": {id: -1},
		"removed": {errors: map[uint32][]byte{procLookup: xdrError(libvirt.ErrNoDomain,
			"Domain not found")}},
	} {
		p := listen(t, peer.serve)
		spec := Spec{Mode: QuiescePause, Libvirt: "qemu:///system?socket=" + p.addr.Path,
			Domain: "test", Instance: "domain 7"}
		h, err := spec.Open(nil, nil)
		test.Must(t, err)
		test.ErrorIs(t, h.ForceThaw(within(t, waitTimeout)), ErrGone, name)
		if _, err := h.Identify(within(t, waitTimeout)); err == nil && peer.id < 0 {
			t.Errorf("%s was identified", name)
		}
		h.Close()
	}
}

// The instance is the listening agent process; if that process has ended, the guest is gone.
func TestAgentGone(t *testing.T) {
	_, p := newGuest(t)
	spec := Spec{Mode: QuiesceGuest, Agent: p.addr.String()}
	open := func() *Handle {
		t.Helper()
		h, err := spec.Open(nil, nil)
		test.Must(t, err)
		return h
	}
	h := open()
	instance, err := h.Identify(within(t, waitTimeout))
	h.Close() // the port serves one client at a time
	if want := fmt.Sprintf("pid %d", os.Getpid()); err != nil || instance != want {
		t.Errorf("instance %q, %v; want %q", instance, err, want)
	}
	spec.Instance = instance
	test.Check(t, open().ForceThaw(within(t, waitTimeout)), "the same run")
	dead := exec.Command("true")
	test.Must(t, dead.Run())
	spec.Instance = fmt.Sprintf("pid %d", dead.Process.Pid)
	test.ErrorIs(t, open().ForceThaw(within(t, waitTimeout)), ErrGone,
		"of a process that has ended")
	// No listener and no instance, as in records of earlier versions.
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	test.Must(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	spec = Spec{Mode: QuiesceGuest, Agent: "unix:" + path}
	test.ErrorIs(t, open().ForceThaw(within(t, waitTimeout)), ErrGone, "refused")
	if _, err := open().Identify(within(t, waitTimeout)); err == nil {
		t.Error("an agent that refuses was identified")
	}
	spec = Spec{Mode: QuiescePause, QMP: "unix:" + path}
	h = open()
	defer h.Close()
	test.ErrorIs(t, h.ForceThaw(within(t, waitTimeout)), ErrGone, "a monitor that refuses")
	// A socket that does not exist may appear later.
	spec = Spec{Mode: QuiesceGuest, Agent: "unix:" + path + ".none"}
	if err := open().ForceThaw(within(t, freezeTime(false))); err == nil ||
		errors.Is(err, ErrGone) {
		t.Errorf("no socket: %v", err)
	}
}

// An agent without a freeze command, or that forbids it, has frozen nothing.
func TestAgentCannotFreeze(t *testing.T) {
	g, p := newGuest(t)
	g.fault = func(command string, _ int) string {
		if command == "guest-fsfreeze-freeze" {
			return "unknown"
		}
		return ""
	}
	a := NewAgent(AgentOptions{Address: p.addr})
	if err := a.Freeze(within(t, waitTimeout)); err == nil || a.frozen {
		t.Errorf("frozen %t: %v", a.frozen, err)
	}
}
