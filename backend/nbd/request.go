package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// request is a READ in progress. go-nbd reads it in pieces; their replies are joined to one.
type request struct {
	cookie     uint64
	offset     uint64 // of the next piece
	left       uint32 // bytes not forwarded yet
	pending    uint32 // bytes of the current piece that go-nbd has not written yet
	headerSent bool   // an error reply is no longer possible
	err        error  // of reading the current piece
}

// nextRequest finishes the current piece, and forwards the next piece or reads the client's next
// request.
func (g *guard) nextRequest() error {
	r := &g.req
	if r.pending > 0 {
		switch {
		case r.err == nil:
			return fmt.Errorf("%w: %d bytes of a read are missing", errReply, r.pending)
		case r.headerSent:
			return fmt.Errorf("in the middle of a reply: %w", r.err)
		}
		g.server.log.Warn("NBD read failed", "client", g.client.from, "export", g.export.Name,
			"err", r.err)
		failed := *r
		*r, g.header = request{}, g.header[:0]
		return g.reply(failed.cookie, failed.err)
	}
	if r.left > 0 {
		g.forwardRead()
		return nil
	}
	var h [requestLen]byte
	if err := g.receive(h[:]); err != nil {
		return err
	}
	magic := binary.BigEndian.Uint32(h[0:])
	flags, kind := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:])
	*r = request{cookie: binary.BigEndian.Uint64(h[8:]), offset: binary.BigEndian.Uint64(h[16:])}
	n := binary.BigEndian.Uint32(h[24:])
	if magic != protocol.TRANSMISSION_MAGIC_REQUEST {
		return protocolf("request with magic %#x", magic)
	}
	switch kind {
	case cmdRead:
		if err := g.checkRead(flags, n); err != nil {
			return g.reply(r.cookie, err)
		}
		if n == 0 {
			return g.reply(r.cookie, nil)
		}
		r.left = n
		g.forwardRead()
		return nil
	case cmdDisc:
		g.phase = atEnd
		g.forwardRequest(cmdDisc, 0)
		return nil
	case cmdWrite:
		// WRITE is the only command with a payload. If it is too long to skip, the stream cannot be
		// resynchronized.
		if n > maxRequest {
			return protocolf("WRITE of %d bytes", n)
		}
		if err := g.discard(int(n)); err != nil {
			return err
		}
		return g.reply(r.cookie, errReadOnly)
	case cmdTrim, cmdWriteZeroes:
		return g.reply(r.cookie, errReadOnly)
	}
	// FLUSH, CACHE, BLOCK_STATUS, ...: not offered.
	return g.reply(r.cookie, errRequest)
}

// checkRead checks a READ against the export.
func (g *guard) checkRead(flags uint16, n uint32) error {
	size := uint64(g.size)
	switch offset := g.req.offset; {
	case flags != 0:
		return fmt.Errorf("%w: flags %#x were not offered", errRequest, flags)
	case n > maxRequest:
		return fmt.Errorf("%w: READ of %d bytes, at most %d are allowed", errRequest, n, maxRequest)
	case offset > size || uint64(n) > size-offset:
		return fmt.Errorf("%w: READ of %d bytes at %d, the export has %d",
			errRequest, n, offset, size)
	}
	return nil
}

// forwardRead passes the next piece of the READ to go-nbd.
func (g *guard) forwardRead() {
	r := &g.req
	r.pending = min(r.left, chunkSize)
	g.forwardRequest(cmdRead, r.pending)
	r.left -= r.pending
	r.offset += uint64(r.pending)
	g.header = g.header[:0]
}

func (g *guard) forwardRequest(kind uint16, n uint32) {
	b := binary.BigEndian.AppendUint32(g.inputBuf[:0], protocol.TRANSMISSION_MAGIC_REQUEST)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, g.req.cookie)
	b = binary.BigEndian.AppendUint64(b, g.req.offset)
	g.input = binary.BigEndian.AppendUint32(b, n)
}

// reply replies to a request without data.
func (g *guard) reply(cookie uint64, err error) error {
	b := binary.BigEndian.AppendUint32(nil, protocol.TRANSMISSION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, errorValue(err))
	b = binary.BigEndian.AppendUint64(b, cookie)
	g.Conn.SetWriteDeadline(time.Now().Add(g.server.opts.StallTime))
	return g.send(b)
}

// writeReply takes go-nbd's reply to a piece: a header of success, which is held back until the
// data follows because the read may still fail, and the data.
func (g *guard) writeReply(p []byte) (int, error) {
	r := &g.req
	n := len(p)
	if k := min(replyLen-len(g.header), len(p)); k > 0 {
		g.header = append(g.header, p[:k]...)
		if p = p[k:]; len(g.header) == replyLen {
			h := g.header
			if binary.BigEndian.Uint32(h) != protocol.TRANSMISSION_MAGIC_REPLY ||
				binary.BigEndian.Uint32(h[4:]) != 0 || binary.BigEndian.Uint64(h[8:]) != r.cookie {
				return 0, fmt.Errorf("%w: to a read: % x", errReply, h)
			}
		}
	}
	if len(p) == 0 {
		return n, nil
	}
	if r.err != nil || uint64(len(p)) > uint64(r.pending) {
		return 0, fmt.Errorf("%w: %d bytes to a read with %d to come", errReply, len(p), r.pending)
	}
	g.Conn.SetWriteDeadline(time.Now().Add(g.server.opts.StallTime))
	g.out = g.out[:0]
	if !r.headerSent {
		g.out = append(g.out, g.header)
	}
	g.out = append(g.out, p)
	r.headerSent = true
	g.unsent = g.out // WriteTo consumes unsent
	if _, err := g.unsent.WriteTo(g.Conn); err != nil {
		return 0, err
	}
	r.pending -= uint32(len(p))
	g.sent += int64(len(p))
	return n, nil
}

// reader is the guard as go-nbd's backend.
type reader guard

// ReadAt reads the current piece. It returns no error, because go-nbd, which has written success
// already, would disconnect; the guard handles req.err.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.disk.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	r.req.err = fmt.Errorf("read %d bytes at byte %d: %w", len(p), off, err)
	return 0, nil
}

// Size returns the size of the export in bytes.
func (r *reader) Size() (int64, error) { return r.size, nil }

// WriteAt is never reached: see nextRequest.
func (r *reader) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }

// Sync has nothing to do.
func (r *reader) Sync() error { return nil }
