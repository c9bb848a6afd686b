package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// Commands about the session itself. The last two are for clients on go-qemu, which stops reading
// replies while an event waits, and drops error classes.
const (
	cmdCapabilities = "qmp_capabilities"
	cmdSetEvents    = "cow-set-events"
	cmdLastError    = "cow-last-error"
)

const (
	maxPending = 8                      // commands read ahead, as in QEMU's monitor
	hangupPoll = 100 * time.Millisecond // interval of checks for a hang-up
)

// session is the server side of one connection.
type session struct {
	srv          *Server
	conn         *net.UnixConn
	peer         Peer
	out          *outbox
	ctx          context.Context // ends at a hang-up or when the server closes; see withPeer
	cancel       context.CancelFunc
	inputs       chan input   // reader to executor
	writeTimeout atomic.Int64 // of one write, a time.Duration

	readEnded chan struct{} // closed when the reader has read its last byte
	written   chan struct{} // closed when the writer has ended

	events bool // subscribed to events; under srv.mu

	// Used by the executor only.
	negotiated bool
	lastErr    *Error
}

// input is one JSON text from the client, or the error of the stream in its place.
type input struct {
	text []byte
	err  error
}

func newSession(s *Server, conn *net.UnixConn, peer Peer) *session {
	c := &session{
		srv: s, conn: conn, peer: peer, out: newOutbox(s.opts.MaxQueue),
		inputs:    make(chan input, maxPending),
		readEnded: make(chan struct{}), written: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(withPeer(context.Background(), peer))
	c.writeTimeout.Store(int64(s.opts.WriteTimeout))
	return c
}

// run is the reader; it starts and ends the executor and the writer. At the end: no more input, the
// executor finishes, the writer sends the rest, the connection is closed.
func (c *session) run() {
	defer c.srv.removeSession(c)
	defer c.conn.Close()
	executed := make(chan struct{})
	go func() { defer close(c.written); c.write() }()
	go func() { defer close(executed); c.execute() }()

	c.read()
	close(c.readEnded)
	close(c.inputs)
	tick := time.NewTicker(hangupPoll)
	defer tick.Stop()
	for running := true; running; {
		if hungUp(c.conn) {
			c.cancel()
		}
		select {
		case <-executed:
			running = false
		case <-tick.C:
		}
	}
	c.cancel()
	c.out.end()
	<-c.written
}

// abort ends the session at once. It never waits.
func (c *session) abort() {
	c.cancel()
	c.out.close()
	c.conn.Close() // wakes reader and writer
}

// drain lets the running command end and queued output be sent, and no more.
func (c *session) drain() {
	c.cancel()
	c.writeTimeout.Store(int64(min(closeTimeout, c.srv.opts.WriteTimeout)))
	c.conn.SetReadDeadline(time.Unix(1, 0))
	c.conn.SetWriteDeadline(time.Now().Add(closeTimeout))
}

// read splits the input into texts until it ends or is invalid.
func (c *session) read() {
	var sp splitter
	buf := make([]byte, 4096)
	for {
		n, err := c.conn.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			used, done, serr := sp.scan(p)
			p = p[used:]
			switch {
			case serr != nil:
				if !c.queue(input{err: serr}) || errors.Is(serr, errTooLong) {
					return
				}
			case done:
				if !c.queue(input{text: append([]byte(nil), sp.text...)}) {
					return
				}
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
				c.cancel() // such as ECONNRESET: no replies are wanted
			}
			return
		}
	}
}

// queue passes in to the executor and waits while maxPending are queued. false: the client is gone.
func (c *session) queue(in input) bool {
	select {
	case c.inputs <- in:
		return true
	default:
	}
	// The end of the stream is not visible while nothing is read.
	tick := time.NewTicker(hangupPoll)
	defer tick.Stop()
	for {
		select {
		case c.inputs <- in:
			return true
		case <-c.ctx.Done():
			return false
		case <-tick.C:
			if hungUp(c.conn) {
				c.cancel()
			}
		}
	}
}

// execute sends the greeting and runs the commands in order.
func (c *session) execute() {
	if line, err := c.greeting(); err == nil {
		c.out.put(line)
	}
	for in := range c.inputs {
		if c.ctx.Err() != nil {
			return // the reader also sees it and stops
		}
		if in.err != nil {
			c.reply(nil, nil, errorf("%v", in.err))
			continue
		}
		r, failure := parseRequest(in.text)
		if failure != nil {
			c.reply(r.ID, nil, failure)
			continue
		}
		c.dispatch(r)
	}
}

// dispatch runs one command and queues its reply.
func (c *session) dispatch(r request) {
	var value any
	var err error
	switch {
	case r.Execute == cmdCapabilities && !c.negotiated:
		if err = negotiate(r.Args); err == nil {
			c.negotiated = true
			c.reply(r.ID, nil, nil)
			// After the reply: clients expect no event before it.
			c.srv.setEvents(c, true)
			return
		}
	case r.Execute == cmdCapabilities:
		err = notFound("Capabilities negotiation is already complete, command ignored")
	case !c.negotiated:
		err = notFound("Expecting capabilities negotiation with 'qmp_capabilities'")
	case r.Execute == cmdSetEvents:
		err = c.setEvents(r.Args)
	case r.Execute == cmdLastError:
		value = c.lastErr
	default:
		command, ok := c.srv.lookup(r.Execute)
		if !ok {
			err = notFound("The command " + r.Execute + " has not been found")
			break
		}
		log := c.srv.opts.Log.With("command", r.Execute, "uid", c.peer.UID, "pid", c.peer.PID)
		if command.changes {
			// Not rate-limited: members of the group must not be able to suppress a line.
			log.Info("control command", "arguments", truncateArgs(r.Args))
		}
		if !command.own && (command.takeConn != nil || !c.srv.opts.GroupMay[r.Execute]) {
			err = OwnerOnly(c.ctx, "command "+r.Execute)
		}
		if err == nil && command.takeConn != nil {
			c.runConnHandler(command.takeConn, r.Args)
			return
		}
		if err == nil {
			err = c.srv.beginCommand(c.ctx)
		}
		if err == nil {
			value, err = command.run(c.ctx, r.Args)
			c.srv.endCommand()
		}
		if command.changes && err != nil {
			log.Warn("control command failed", "err", err)
		}
	}
	if err != nil {
		c.reply(r.ID, nil, asError(err))
		return
	}
	c.reply(r.ID, value, nil)
}

// runConnHandler ends the session's reader and writer, after queued output is sent, and passes the
// connection to h.
func (c *session) runConnHandler(h ConnHandler, args json.RawMessage) {
	c.srv.setEvents(c, false)
	c.out.end()
	<-c.written
	c.conn.SetReadDeadline(time.Unix(1, 0))
	<-c.readEnded
	c.conn.SetDeadline(time.Time{})
	h(c.ctx, c.conn, args)
	c.abort()
}

// maxLoggedArgs bounds the logged arguments of a command, in bytes.
const maxLoggedArgs = 512

func truncateArgs(args json.RawMessage) string {
	if len(args) > maxLoggedArgs {
		return string(args[:maxLoggedArgs]) + "..."
	}
	return string(args)
}

// reply queues a reply and keeps its error for cow-last-error.
func (c *session) reply(id json.RawMessage, value any, failure *Error) {
	line, sent := encodeReply(id, value, failure)
	if sent != nil {
		c.lastErr = sent
	}
	c.out.put(line)
}

// setEvents implements cow-set-events {"enable": bool}.
func (c *session) setEvents(args json.RawMessage) error {
	var p struct {
		Enable *bool `json:"enable"`
	}
	if err := Decode(args, &p); err != nil {
		return err
	}
	if p.Enable == nil {
		return errorf("Parameter 'enable' is missing")
	}
	c.srv.setEvents(c, *p.Enable)
	return nil
}

// negotiate checks the arguments of qmp_capabilities. The server offers no capabilities.
func negotiate(args json.RawMessage) error {
	var p struct {
		Enable []string `json:"enable"`
	}
	if err := Decode(args, &p); err != nil {
		return err
	}
	if len(p.Enable) > 0 {
		return errorf("Capability '%s' not available", p.Enable[0])
	}
	return nil
}

// greeting returns the first line of the session.
func (c *session) greeting() ([]byte, error) {
	type hello struct {
		Version      Version  `json:"version"`
		Capabilities []string `json:"capabilities"`
	}
	return encodeLine(struct {
		QMP hello `json:"QMP"`
	}{hello{c.srv.opts.Version, []string{}}})
}

// write sends queued output until the queue ends or the client does not read.
func (c *session) write() {
	for {
		lines := c.out.take()
		if lines == nil {
			return
		}
		// drain may shorten writeTimeout between the two lines.
		for grace := int64(-1); grace != c.writeTimeout.Load(); {
			grace = c.writeTimeout.Load()
			c.conn.SetWriteDeadline(time.Now().Add(time.Duration(grace)))
		}
		if _, err := c.conn.Write(lines); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.srv.opts.Log.Warn("control client does not read: disconnected", "err", err)
			}
			c.abort()
			return
		}
	}
}
