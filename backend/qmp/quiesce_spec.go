package qmp

import (
	"context"
	"fmt"
	"log/slog"
)

// How a guest is made to hold still.
const (
	QuiesceNone  = "none"  // not at all: what is cut is crash-consistent
	QuiesceGuest = "guest" // its file systems are frozen by its agent
	QuiescePause = "pause" // its processors are stopped
)

// Spec says how to quiesce one guest, and through whom. It crosses the control
// socket, and lies on disk as the note of a guest that is being quiesced.
type Spec struct {
	Mode    string `json:"quiesce,omitempty"` // one of the constants; empty: none
	QMP     string `json:"qmp,omitempty"`     // address of QEMU's monitor, for pause
	Agent   string `json:"agent,omitempty"`   // address of the guest agent, for guest
	Libvirt string `json:"libvirt,omitempty"` // URI: through libvirt instead of the two
	Domain  string `json:"domain,omitempty"`  // of libvirt
	// Instance is the run of the guest that a note is about, as Identify has returned it: a later run was not
	// quiesced. Empty: not known, as in notes of earlier versions.
	Instance string `json:"instance,omitempty"`
}

// Handle is an opened Spec.
type Handle struct {
	Quiescer
	release func(context.Context) error
	close   func()
}

// Release lets the guest go on, whoever holds it: after the death of a process
// that left a note. ErrGone: the guest of the note is no more.
func (h *Handle) Release(ctx context.Context) error { return h.release(ctx) }

// Close gives the connections back.
func (h *Handle) Close() {
	if h.close != nil {
		h.close()
	}
}

// Active reports whether the guest is to hold still at all.
func (s *Spec) Active() bool { return s.Mode != "" && s.Mode != QuiesceNone }

// Check refuses the address of a guest without a word about how it is to hold
// still: nothing would be done with it.
func (s *Spec) Check() error {
	for _, address := range []struct{ name, value, mode string }{
		{"agent", s.Agent, QuiesceGuest}, {"qmp", s.QMP, QuiescePause},
		{"libvirt", s.Libvirt, QuiesceGuest + "|" + QuiescePause}, {"domain", s.Domain, QuiesceGuest + "|" + QuiescePause},
	} {
		if address.value != "" && !s.Active() {
			return fmt.Errorf("--%s without --quiesce %s: the guest would not be quiesced", address.name, address.mode)
		}
	}
	return nil
}

// Open checks the spec and makes its Quiescer; nothing is sent yet. monitor is
// the connection to the address QMP if the caller has one already, or nil. An
// error says what is missing or wrong.
func (s *Spec) Open(log *slog.Logger, monitor *Monitor) (*Handle, error) {
	switch {
	case !s.Active():
		return nil, fmt.Errorf("quiesce %q: nothing to open", s.Mode)
	case s.Mode != QuiesceGuest && s.Mode != QuiescePause:
		return nil, fmt.Errorf("quiesce %q: expected %s, %s or %s", s.Mode, QuiesceNone, QuiesceGuest, QuiescePause)
	case s.Libvirt != "":
		return s.openLibvirt()
	case s.Mode == QuiesceGuest:
		if s.Agent == "" {
			return nil, fmt.Errorf("quiesce guest: the guest agent's address is missing: --agent unix:PATH or vsock:CID:PORT, or --libvirt URI --domain NAME")
		}
		addr, err := ParseAddress(s.Agent)
		if err != nil {
			return nil, fmt.Errorf("guest agent: %w", err)
		}
		a := NewAgent(AgentOptions{Log: log, Address: addr, Instance: s.Instance})
		return &Handle{Quiescer: a, release: unlessGone(s.Instance, a.Release), close: a.disconnect}, nil
	}
	if monitor != nil {
		p := NewPause(monitor)
		p.recorded = s.Instance
		return &Handle{Quiescer: p, release: unlessGone(s.Instance, p.Resume)}, nil
	}
	if s.QMP == "" {
		return nil, fmt.Errorf("quiesce pause: the address of QEMU's monitor is missing: --qmp unix:PATH, or --libvirt URI --domain NAME")
	}
	addr, err := ParseAddress(s.QMP)
	if err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	m := NewMonitor(MonitorOptions{Log: log, Address: addr})
	p := NewPause(m)
	p.recorded = s.Instance
	return &Handle{Quiescer: p, release: unlessGone(s.Instance, p.Resume), close: func() { m.Close() }}, nil
}

func (s *Spec) openLibvirt() (*Handle, error) {
	at, err := ParseLibvirt(s.Libvirt, s.Domain)
	if err != nil {
		return nil, err
	}
	if s.Mode == QuiesceGuest {
		f := NewLibvirtFreeze(at)
		f.recorded = s.Instance
		return &Handle{Quiescer: f, release: f.Release}, nil
	}
	p, err := NewLibvirtPause(at)
	if err != nil {
		return nil, err
	}
	lp := &libvirtPause{Pause: p, at: at, recorded: s.Instance}
	p.gone = lp.gone
	return &Handle{Quiescer: lp, release: lp.release}, nil
}
