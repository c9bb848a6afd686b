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

// Commands that act on the session itself. The last two are for this package's client,
// because of what go-qemu's SocketMonitor does with events and error classes; see Client.
const (
	cmdCapabilities = "qmp_capabilities"
	cmdSetEvents    = "cow-set-events"
	cmdLastError    = "cow-last-error"
)

const (
	maxPending = 8                      // commands read ahead, as many as QEMU's monitor queues
	hangupPoll = 100 * time.Millisecond // how often a client that may be gone is looked at
)

// session is the server's side of one connection.
type session struct {
	srv          *Server
	conn         *net.UnixConn
	peer         Peer
	out          *outbox
	ctx          context.Context // ends when the client is gone or the server closes; see withPeer
	cancel       context.CancelFunc
	inputs       chan input   // reader to executor
	writeTimeout atomic.Int64 // one write's time limit, a time.Duration

	readEnded, written chan struct{} // closed when the reader has seen its last byte, and when the writer has ended

	events bool // wants events; under srv.mu

	// The executor's own.
	negotiated bool
	lastErr    *Error
}

// input is one text from the client, or what was wrong with the stream in its place.
type input struct {
	text []byte
	err  error
}

func newSession(s *Server, conn *net.UnixConn, peer Peer) *session {
	c := &session{
		srv: s, conn: conn, peer: peer, out: newOutbox(s.opts.MaxQueue), inputs: make(chan input, maxPending),
		readEnded: make(chan struct{}), written: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(withPeer(context.Background(), peer))
	c.writeTimeout.Store(int64(s.opts.WriteTimeout))
	return c
}

// run is the reader, and ends the other two. The order: no more input, the executor
// finishes, the writer sends what it left, the connection closes.
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

// abort ends a client that is of no use any more. It never waits.
func (c *session) abort() {
	c.cancel()
	c.out.close()
	c.conn.Close() // wakes reader and writer
}

// drain lets the running command end and what is queued be sent, and no more.
func (c *session) drain() {
	c.cancel()
	c.writeTimeout.Store(int64(min(closeTimeout, c.srv.opts.WriteTimeout)))
	c.conn.SetReadDeadline(time.Unix(1, 0))
	c.conn.SetWriteDeadline(time.Now().Add(closeTimeout))
}

// read cuts the input up until there is no more, or too much of it.
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
				c.cancel() // such as a reset: nobody waits for replies
			}
			return
		}
	}
}

// queue hands in to the executor, waiting while maxPending are ahead of it. false:
// there is nobody to answer any more.
func (c *session) queue(in input) bool {
	select {
	case c.inputs <- in:
		return true
	default:
	}
	// While nothing is read, the end of the stream is not seen.
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

// execute greets the client and runs its commands in their order.
func (c *session) execute() {
	if line, err := c.greeting(); err == nil {
		c.out.put(line)
	}
	for in := range c.inputs {
		if c.ctx.Err() != nil {
			return // the reader sees the same and stops filling the channel
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
			// After the reply: a client expects no event before it.
			c.srv.setEvents(c, true)
			return
		}
	case r.Execute == cmdCapabilities:
		err = &Error{CommandNotFound, "Capabilities negotiation is already complete, command ignored"}
	case !c.negotiated:
		err = &Error{CommandNotFound, "Expecting capabilities negotiation with 'qmp_capabilities'"}
	case r.Execute == cmdSetEvents:
		err = c.setEvents(r.Args)
	case r.Execute == cmdLastError:
		value = c.lastErr
	default:
		if h := c.srv.lookupConn(r.Execute); h != nil {
			c.logCommand(r)
			if err = c.runConnHandler(h, r.Args); err == nil {
				return
			}
			break
		}
		command, ok := c.srv.lookup(r.Execute)
		if !ok {
			err = &Error{CommandNotFound, "The command " + r.Execute + " has not been found"}
			break
		}
		if command.changes {
			c.logCommand(r)
		}
		if err = c.srv.beginCommand(c.ctx); err == nil {
			value, err = command.run(c.ctx, r.Args)
			c.srv.endCommand()
		}
		if command.changes && err != nil {
			c.srv.opts.Log.Warn("control command failed", "command", r.Execute, "uid", c.peer.UID, "pid", c.peer.PID, "err", err)
		}
	}
	if err != nil {
		c.reply(r.ID, nil, asError(err))
		return
	}
	c.reply(r.ID, value, nil)
}

// maxLoggedArgs bounds what is logged of a command's arguments, in bytes.
const maxLoggedArgs = 512

// logCommand logs a command that changes something, before it runs: who sent it, and what
// with. Nothing holds these lines back: members of a group must not be able to hide one.
func (c *session) logCommand(r request) {
	args := string(r.Args)
	if len(args) > maxLoggedArgs {
		args = args[:maxLoggedArgs] + "..."
	}
	c.srv.opts.Log.Info("control command", "command", r.Execute, "uid", c.peer.UID, "pid", c.peer.PID, "arguments", args)
}

// reply queues a result, and keeps an error for cow-last-error.
func (c *session) reply(id json.RawMessage, value any, failure *Error) {
	line, sent := encodeReply(id, value, failure)
	if sent != nil {
		c.lastErr = sent
	}
	c.out.put(line)
}

// setEvents is cow-set-events {"enable": bool}.
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

// negotiate checks the arguments of qmp_capabilities. The greeting offers none.
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

// greeting is the first line a client gets.
func (c *session) greeting() ([]byte, error) {
	type hello struct {
		Version      Version  `json:"version"`
		Capabilities []string `json:"capabilities"`
	}
	return encodeLine(struct {
		QMP hello `json:"QMP"`
	}{hello{c.srv.opts.Version, []string{}}})
}

// write sends what is queued until there will be no more, or the client does not take it.
func (c *session) write() {
	for {
		lines := c.out.take()
		if lines == nil {
			return
		}
		// drain may shorten the time between the two lines.
		for grace := int64(-1); grace != c.writeTimeout.Load(); {
			grace = c.writeTimeout.Load()
			c.conn.SetWriteDeadline(time.Now().Add(time.Duration(grace)))
		}
		if _, err := c.conn.Write(lines); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.srv.opts.Log.Warn("control client does not read and is closed", "err", err)
			}
			c.abort()
			return
		}
	}
}
