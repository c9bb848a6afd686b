package vhost

import (
	"fmt"

	"cowblk/vhost/guest"
)

// handler describes one message: its preconditions and its function. A run that fails must leave
// the session as it was, or return a fatal error.
type handler struct {
	min, max       uint32 // payload, bytes
	minFDs, maxFDs int
	needs          uint64 // protocol features without which it is refused
	answers        bool   // it sends its own answer: an error closes the connection
	run            func(*session, *Message) error
}

// handlers is the table of supported messages, which doc.go also lists. It is never written.
// Messages of the dirty log (6, 7) are not supported.
var handlers = [...]handler{
	GetFeatures: {answers: true, run: (*session).getFeatures},
	SetFeatures: {min: sizeU64, max: sizeU64, run: (*session).setFeatures},
	SetOwner:    {run: (*session).setOwner},
	ResetOwner:  {run: (*session).resetDevice},

	GetProtocolFeatures: {answers: true, run: (*session).getProtocolFeatures},
	SetProtocolFeatures: {min: sizeU64, max: sizeU64, run: (*session).setProtocolFeatures},
	GetQueueNum:         {needs: ProtocolMQ, answers: true, run: (*session).getQueueNum},
	SetBackendReqFD: {minFDs: 1, maxFDs: 1, needs: ProtocolBackendReq,
		run: (*session).setBackendReqFD},

	SetMemTable: {min: sizeMemHeader, max: sizeMemHeader + MaxTableRegions*sizeRegion,
		maxFDs: MaxTableRegions, run: (*session).setMemTable},
	GetMaxMemSlots: {needs: ProtocolConfigureMemSlots, answers: true,
		run: (*session).getMaxMemSlots},
	AddMemReg: {min: sizeMemReg, max: sizeMemReg, minFDs: 1, maxFDs: 1,
		needs: ProtocolConfigureMemSlots, run: (*session).addMemReg},
	RemMemReg: {min: sizeMemReg, max: sizeMemReg, maxFDs: 1, needs: ProtocolConfigureMemSlots,
		run: (*session).remMemReg},

	SetVringNum:  {min: sizeVringState, max: sizeVringState, run: (*session).setVringNum},
	SetVringAddr: {min: sizeVringAddr, max: sizeVringAddr, run: (*session).setVringAddr},
	SetVringBase: {min: sizeVringState, max: sizeVringState, run: (*session).setVringBase},
	GetVringBase: {min: sizeVringState, max: sizeVringState, answers: true,
		run: (*session).getVringBase},
	SetVringKick:   {min: sizeU64, max: sizeU64, maxFDs: 1, run: (*session).setVringKick},
	SetVringCall:   {min: sizeU64, max: sizeU64, maxFDs: 1, run: (*session).setVringCall},
	SetVringErr:    {min: sizeU64, max: sizeU64, maxFDs: 1, run: (*session).setVringErr},
	SetVringEnable: {min: sizeVringState, max: sizeVringState, run: (*session).setVringEnable},

	GetConfig: {min: sizeConfigHeader, max: maxPayload, needs: ProtocolConfig, answers: true,
		run: (*session).getConfig},
	SetConfig: {min: sizeConfigHeader, max: maxPayload, needs: ProtocolConfig,
		run: (*session).setConfig},

	GetInflightFD: {min: sizeInflightPacked, max: sizeInflight, needs: ProtocolInflightShmfd,
		answers: true, run: (*session).getInflightFD},
	SetInflightFD: {min: sizeInflightPacked, max: sizeInflight, minFDs: 1, maxFDs: 1,
		needs: ProtocolInflightShmfd, run: (*session).setInflightFD},

	ResetDevice: {needs: ProtocolResetDevice, run: (*session).resetDevice},
	SetStatus:   {min: sizeU64, max: sizeU64, needs: ProtocolStatus, run: (*session).setStatus},
	GetStatus:   {needs: ProtocolStatus, answers: true, run: (*session).getStatus},
}

// lookup returns the row of a message; nil: not supported.
func lookup(r Request) *handler {
	if int64(r) >= int64(len(handlers)) || handlers[r].run == nil {
		return nil
	}
	return &handlers[r]
}

// offered returns the virtio bits to offer, with that of the protocol.
func (s *session) offered() uint64 { return s.be.Features() | FeatureProtocolFeatures }

func (s *session) getFeatures(m *Message) error { return s.replyU64(m, s.offered()) }

func (s *session) setFeatures(m *Message) error {
	f, err := DecodeU64(m.Payload)
	if err != nil {
		return err
	}
	if extra := f &^ s.offered(); extra != 0 {
		return fmt.Errorf("features %#x: bits %#x were not offered: %w", f, extra, ErrProtocol)
	}
	if f == s.features && s.haveFeatures {
		return nil
	}
	// A running ring uses the old features.
	if s.anyRunning() {
		return fmt.Errorf("features changed from %#x to %#x while a ring runs: %w", s.features, f,
			ErrProtocol)
	}
	if err := s.be.SetFeatures(f &^ FeatureProtocolFeatures); err != nil {
		return err
	}
	s.features, s.haveFeatures = f, true
	return s.reconcileAll()
}

func (s *session) getProtocolFeatures(m *Message) error { return s.replyU64(m, ProtocolFeatures) }

func (s *session) setProtocolFeatures(m *Message) error {
	f, err := DecodeU64(m.Payload)
	if err != nil {
		return err
	}
	if extra := f &^ ProtocolFeatures; extra != 0 {
		return fmt.Errorf("protocol features %#x: bits %#x were not offered: %w", f, extra,
			ErrProtocol)
	}
	s.protocol = f
	return nil
}

// setOwner does nothing: the connection itself has started the session.
func (s *session) setOwner(*Message) error { return nil }

func (s *session) getQueueNum(m *Message) error { return s.replyU64(m, uint64(len(s.rings))) }

// setBackendReqFD keeps the channel for messages of the back-end. The socket is never read, because
// the front-end writes only acknowledgements to it.
func (s *session) setBackendReqFD(m *Message) error {
	closeFD(s.backendReq)
	s.backendReq = m.TakeFD()
	return nil
}

// resetDevice stops and disables all rings and resets the device. The regions stay shared, because
// QEMU does not send them again after RESET_DEVICE. So do the call and error descriptors, which it
// sends once, when it connects.
//
// RESET_OWNER, deprecated, has the same effect. Ending the session instead would break front-ends
// that send it at every stop.
func (s *session) resetDevice(m *Message) error {
	if err := s.stopAll(); err != nil {
		return fatal{err}
	}
	for i := range s.rings {
		s.rings[i].dropKick()
	}
	s.dropInflight(m.Request == ResetDevice)
	s.status = 0
	s.be.Reset()
	return nil
}

func (s *session) setStatus(m *Message) error {
	v, err := DecodeU64(m.Payload)
	if err != nil {
		return err
	}
	if v > 0xff {
		return fmt.Errorf("device status %#x, expected at most 0xff: %w", v, ErrProtocol)
	}
	s.status = uint8(v) &^ statusNeedsReset // the session sets this bit; the front-end may echo it
	s.be.SetStatus(s.status)
	return nil
}

// statusNeedsReset is DEVICE_NEEDS_RESET (virtio 1.2, 2.1).
const statusNeedsReset = 0x40

func (s *session) getStatus(m *Message) error {
	v := uint64(s.status)
	if s.be.NeedsReset() {
		v |= statusNeedsReset
	}
	return s.replyU64(m, v)
}

// getConfig answers with a window on the configuration space, or with an empty payload if the space
// has no such window ("GET_CONFIG").
func (s *session) getConfig(m *Message) error {
	c, err := DecodeConfigSpace(m.Payload)
	if err != nil {
		s.logRefusal(m.Request, err)
		return s.reply(m, nil)
	}
	space := make([]byte, c.Offset+c.Size)
	if err := s.be.Config(space); err != nil {
		s.logRefusal(m.Request, err)
		return s.reply(m, nil)
	}
	c.Data = space[c.Offset:]
	return s.reply(m, c.Append(nil))
}

func (s *session) setConfig(m *Message) error {
	c, err := DecodeConfigSpace(m.Payload)
	if err != nil {
		return err
	}
	if len(c.Data) != int(c.Size) {
		return wrongSize("config space data", len(c.Data), int(c.Size))
	}
	if c.Flags != ConfigFrontend && c.Flags != ConfigMigration {
		return fmt.Errorf("config space: flags %#x, expected 0 or 1: %w", c.Flags, ErrProtocol)
	}
	return s.be.SetConfig(c.Offset, c.Data)
}

func (s *session) setMemTable(m *Message) error {
	regions, err := DecodeMemTable(m.Payload)
	if err != nil {
		return err
	}
	if len(regions) != len(m.FDs) {
		return fmt.Errorf("%d regions with %d file descriptors: %w", len(regions), len(m.FDs),
			ErrProtocol)
	}
	t, err := s.space.NewTable(regions, m.FDs)
	if err != nil {
		return err
	}
	return s.useMemory(t)
}

func (s *session) getMaxMemSlots(m *Message) error { return s.replyU64(m, guest.MaxRegions) }

func (s *session) addMemReg(m *Message) error {
	r, err := DecodeMemReg(m.Payload)
	if err != nil {
		return err
	}
	old := s.memory
	if old == nil {
		if old, err = s.space.NewTable(nil, nil); err != nil {
			return err
		}
		defer old.Release()
	}
	t, err := old.With(r, m.FDs[0])
	if err != nil {
		return err
	}
	return s.useMemory(t)
}

// remMemReg ignores a descriptor, which older QEMUs send.
func (s *session) remMemReg(m *Message) error {
	r, err := DecodeMemReg(m.Payload)
	if err != nil {
		return err
	}
	if s.memory == nil {
		return fmt.Errorf("remove region [%v]: no memory is shared: %w", r, ErrProtocol)
	}
	t, err := s.memory.Without(r)
	if err != nil {
		return err
	}
	return s.useMemory(t)
}

// useMemory takes over the caller's reference to t.
func (s *session) useMemory(t *guest.Table) error {
	if err := s.be.SetMemory(t); err != nil {
		t.Release()
		return fmt.Errorf("using the new memory table: %w", err)
	}
	if s.memory != nil {
		s.memory.Release()
	}
	s.memory = t
	s.watch.shared.Store(len(t.Regions()) > 0)
	return s.reconcileAll()
}
