package qmp

import (
	"errors"
	"fmt"
	"log/slog"
)

// Modes of quiescing.
const (
	QuiesceNone  = "none"  // the guest runs on: the tag is crash-consistent
	QuiesceGuest = "guest" // its agent freezes its file systems
	QuiescePause = "pause" // its processors are stopped
)

// Spec says how to quiesce one guest. It is sent over the control socket, and stored as the quiesce
// record.
type Spec struct {
	Mode    string `json:"quiesce,omitempty"` // one of the modes; empty: none
	QMP     string `json:"qmp,omitempty"`     // address of QEMU's monitor, for pause
	Agent   string `json:"agent,omitempty"`   // address of the guest agent, for guest
	Libvirt string `json:"libvirt,omitempty"` // URI; instead of QMP and Agent
	Domain  string `json:"domain,omitempty"`  // of libvirt
	// Instance is the run of the guest in a quiesce record, as returned by Identify; a later run is
	// not quiesced. Empty: unknown, as in records of earlier versions.
	Instance string `json:"instance,omitempty"`
}

// Handle is an opened Spec.
type Handle struct {
	Quiescer
	close func() // nil: no connections
}

// Close closes the connections.
func (h *Handle) Close() {
	if h.close != nil {
		h.close()
	}
}

// Active reports whether the guest is to be quiesced at all.
func (s *Spec) Active() bool { return s.Mode != "" && s.Mode != QuiesceNone }

// Check refuses the address of a guest without a mode, because it would have no effect.
func (s *Spec) Check() error {
	for _, address := range []struct{ name, value, mode string }{
		{"agent", s.Agent, QuiesceGuest}, {"qmp", s.QMP, QuiescePause},
		{"libvirt", s.Libvirt, QuiesceGuest + "|" + QuiescePause},
		{"domain", s.Domain, QuiesceGuest + "|" + QuiescePause},
	} {
		if address.value != "" && !s.Active() {
			return fmt.Errorf("--%s without --quiesce %s: the guest would not be quiesced",
				address.name, address.mode)
		}
	}
	return nil
}

// Open checks the spec and returns its Quiescer, without connecting. monitor is an existing
// connection to the address QMP, or nil.
func (s *Spec) Open(log *slog.Logger, monitor *Monitor) (*Handle, error) {
	switch {
	case !s.Active():
		return nil, fmt.Errorf("quiesce %q: nothing to open", s.Mode)
	case s.Mode != QuiesceGuest && s.Mode != QuiescePause:
		return nil, fmt.Errorf("quiesce %q: expected %s, %s or %s",
			s.Mode, QuiesceNone, QuiesceGuest, QuiescePause)
	case s.Libvirt != "":
		return s.openLibvirt()
	case s.Mode == QuiesceGuest:
		if s.Agent == "" {
			return nil, errors.New("quiesce guest: the guest agent's address is missing: " +
				"--agent unix:PATH or vsock:CID:PORT, or --libvirt URI --domain NAME")
		}
		addr, err := ParseAddress(s.Agent)
		if err != nil {
			return nil, fmt.Errorf("guest agent: %w", err)
		}
		a := NewAgent(AgentOptions{Log: log, Address: addr, Instance: s.Instance})
		return &Handle{a, a.disconnect}, nil
	}
	h := &Handle{}
	if monitor == nil {
		if s.QMP == "" {
			return nil, errors.New("quiesce pause: the address of QEMU's monitor is missing: " +
				"--qmp unix:PATH, or --libvirt URI --domain NAME")
		}
		addr, err := ParseAddress(s.QMP)
		if err != nil {
			return nil, fmt.Errorf("QEMU's monitor: %w", err)
		}
		monitor = NewMonitor(MonitorOptions{Log: log, Address: addr})
		h.close = func() { monitor.Close() }
	}
	p := NewPause(monitor)
	p.recorded = s.Instance
	h.Quiescer = p
	return h, nil
}

func (s *Spec) openLibvirt() (*Handle, error) {
	at, err := ParseLibvirt(s.Libvirt, s.Domain)
	if err != nil {
		return nil, err
	}
	if s.Mode == QuiesceGuest {
		f := NewLibvirtFreeze(at)
		f.recorded = s.Instance
		return &Handle{Quiescer: f}, nil
	}
	p, err := NewLibvirtPause(at)
	if err != nil {
		return nil, err
	}
	lp := &libvirtPause{Pause: p, at: at, recorded: s.Instance}
	p.ifGone = lp.ifGone
	return &Handle{Quiescer: lp}, nil
}
