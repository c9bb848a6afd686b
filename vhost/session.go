package vhost

import (
	"errors"
	"fmt"
	"log/slog"
	"net"

	"cowblk/vhost/guest"
)

// session is one front-end's connection. Only the goroutine of Serve uses it.
type session struct {
	conn *Conn
	be   Backend
	log  *slog.Logger
	opts Options

	features     uint64 // SET_FEATURES, with FeatureProtocolFeatures
	haveFeatures bool
	protocol     uint64 // SET_PROTOCOL_FEATURES
	status       uint8  // SET_STATUS
	space        guest.Space
	memory       *guest.Table
	inflight     *inflight // SET_INFLIGHT_FD, nil: none
	rings        []ring
	backendReq   int // SET_BACKEND_REQ_FD, -1: none
	refused      int // messages answered with a failure
	watch        memoryWatch
	untracked    bool // a ring without a region in the inflight buffer was logged
}

// fatal marks an error of a handler after which the session must end, because the two sides no
// longer agree on the state.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// Serve serves vhost-user on conn for be until the front-end disconnects or conn is closed
// elsewhere (both nil), or until an error: a message that cannot be obeyed or parsed (the error
// names the message and the field, and wraps [ErrProtocol] or the memory table's or Backend's
// error), or a disconnect within a message (io.ErrUnexpectedEOF). When it returns, every running
// queue has been stopped, and every descriptor received and conn have been closed.
func Serve(conn *net.UnixConn, be Backend, o Options) error {
	o = o.withDefaults()
	n := be.Queues()
	if n < 1 || n > MaxQueues {
		conn.Close()
		return fmt.Errorf("vhost-user: back-end with %d queues, expected 1 to %d", n, MaxQueues)
	}
	s := &session{
		conn: NewConn(conn), be: be, log: o.Log, opts: o,
		rings: make([]ring, n), backendReq: -1,
	}
	for i := range s.rings {
		s.rings[i] = newRing()
	}
	err := s.run()
	if disconnected(err) {
		err = nil
	}
	if cerr := s.close(conn); cerr != nil {
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return fmt.Errorf("vhost-user: %w", err)
	}
	return nil
}

func (s *session) run() error {
	for {
		m, err := s.conn.readMessage(checkHeader)
		if err != nil {
			return err
		}
		if err := s.handle(m); err != nil {
			return fmt.Errorf("%v: %w", m.Request, err)
		}
	}
}

// close releases everything: the queues first, because they use the memory and the descriptors.
func (s *session) close(conn *net.UnixConn) error {
	s.stopWatch()
	err := s.stopAll()
	for i := range s.rings {
		s.rings[i].close()
	}
	closeFD(s.backendReq)
	s.inflight.unmap()
	if s.memory != nil {
		s.memory.Release()
		s.memory = nil
	}
	conn.Close()
	return err
}

// checkHeader refuses a message before its payload is read.
func checkHeader(h Header) error {
	hd := lookup(h.Request)
	switch {
	case hd == nil:
		return fmt.Errorf("%v is not supported: %w", h.Request, ErrProtocol)
	case h.Flags&FlagVersionMask != FlagVersion:
		return fmt.Errorf("%v: flags %#x: version %d, expected %d: %w", h.Request, h.Flags,
			h.Flags&FlagVersionMask, FlagVersion, ErrProtocol)
	case h.Flags&FlagReply != 0:
		return fmt.Errorf("%v: flags %#x: a reply, expected a request: %w", h.Request, h.Flags,
			ErrProtocol)
	case h.Size < hd.min || h.Size > hd.max:
		return fmt.Errorf("%v: payload of %d bytes, expected %s: %w", h.Request, h.Size,
			span(hd.min, hd.max), ErrProtocol)
	}
	return nil
}

func span[T uint32 | int](from, to T) string {
	if from == to {
		return fmt.Sprint(from)
	}
	return fmt.Sprintf("%d to %d", from, to)
}

// handle obeys one message and answers it if necessary. It closes the descriptors that the handler
// did not take.
func (s *session) handle(m *Message) error {
	defer m.CloseFDs()
	h := lookup(m.Request)
	if n := len(m.FDs); n < h.minFDs || n > h.maxFDs {
		return fmt.Errorf("%d file descriptors, expected %s: %w", n, span(h.minFDs, h.maxFDs),
			ErrProtocol)
	}
	s.log.Debug("message", "request", m.Request, "size", m.Size, "fds", len(m.FDs))
	err := s.obey(h, m)
	if h.answers {
		return err
	}
	ack := m.Flags&FlagNeedReply != 0 && s.protocol&ProtocolReplyAck != 0
	var stop fatal
	if err != nil && (!ack || errors.As(err, &stop)) {
		return err
	}
	if !ack {
		return nil
	}
	var result uint64
	if err != nil {
		result = 1
		s.logRefusal(m.Request, err)
	}
	return s.replyU64(m, result)
}

func (s *session) obey(h *handler, m *Message) error {
	if missing := h.needs &^ s.protocol; missing != 0 {
		return fmt.Errorf("protocol feature %#x was not negotiated: %w", missing, ErrProtocol)
	}
	return h.run(s, m)
}

// logRefusal logs the first refusal of a session. A hostile front-end could otherwise fill the log.
func (s *session) logRefusal(r Request, err error) {
	s.refused++
	if s.refused == 1 {
		s.log.Warn("message refused", "request", r, "err", err)
		return
	}
	s.log.Debug("message refused", "request", r, "err", err)
}

// reply answers m with a payload.
func (s *session) reply(m *Message, payload []byte) error {
	return s.conn.WriteMessage(Header{Request: m.Request, Flags: FlagVersion | FlagReply}, payload)
}

func (s *session) replyU64(m *Message, v uint64) error { return s.reply(m, AppendU64(nil, v)) }
