package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// nextOption reads one option of the client's as a whole. It is answered here, or
// handed to go-nbd in its plainest form.
func (g *guard) nextOption() error {
	if g.count++; g.count > maxOptions {
		return protocolf("more than %d options", maxOptions)
	}
	var header [optionHeaderLen]byte
	if _, err := io.ReadFull(g.br, header[:]); err != nil {
		return err
	}
	magic, id, n := binary.BigEndian.Uint64(header[:]), binary.BigEndian.Uint32(header[8:]), binary.BigEndian.Uint32(header[12:])
	switch {
	case magic != protocol.NEGOTIATION_MAGIC_OPTION:
		return protocolf("option with magic %#x", magic)
	case n > maxOption:
		return protocolf("option %d with %d bytes, at most %d are allowed", id, n, maxOption)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(g.br, data); err != nil {
		return err
	}
	switch id {
	case optExportName:
		return g.exportName(string(data))
	case optList:
		if n != 0 {
			return g.replyError(id, repErrInvalid, "LIST takes no data")
		}
		return g.list()
	case optInfo, optGo:
		return g.infoOrGo(id, data)
	}
	// ABORT, and all that go-nbd answers with ERR_UNSUP: without their data.
	g.forwardOption(id, nil)
	return nil
}

// forwardOption hands an option to go-nbd.
func (g *guard) forwardOption(id uint32, data []byte) {
	b := binary.BigEndian.AppendUint64(g.inputBuf[:0], protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	g.input, g.option = append(b, data...), id
}

// list answers LIST: one reply a name.
func (g *guard) list() error {
	var b []byte
	for _, name := range g.server.names() {
		b = appendReply(b, optList, repServer, 4+len(name))
		b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
		b = append(b, name...)
	}
	return g.send(appendReply(b, optList, repAck, 0))
}

// infoOrGo handles INFO and GO: length of the name, name, number of information
// requests, two bytes for each of them. go-nbd sends all information that it has
// and needs no requests.
func (g *guard) infoOrGo(id uint32, data []byte) error {
	name, ok := parseInfoOrGo(data)
	if !ok {
		return g.replyError(id, repErrInvalid, "lengths do not agree")
	}
	switch err := g.pinExport(id, name); {
	case errors.Is(err, errTooMany):
		return g.replyError(id, repErrPolicy, err.Error())
	case err != nil:
		return g.replyError(id, repErrUnknown, err.Error())
	}
	return nil
}

// exportName handles EXPORT_NAME, the only option that clients of the first newstyle
// handshake have: its data is the name. go-nbd, which does not know it, gets GO.
func (g *guard) exportName(name string) error {
	if len(name) > maxName {
		return protocolf("EXPORT_NAME with %d bytes, at most %d are allowed", len(name), maxName)
	}
	g.byExportName = true
	err := g.pinExport(optGo, name)
	if err != nil {
		// There is no way to answer it with an error ("NBD_OPT_EXPORT_NAME").
		return fmt.Errorf("export %q (NBD_OPT_EXPORT_NAME): %w", name, err)
	}
	return nil
}

// pinExport pins the export and hands go-nbd the option that chooses it.
func (g *guard) pinExport(id uint32, name string) error {
	e, err := g.server.pin(g.client, name)
	if err != nil {
		return err
	}
	g.export.Name, g.disk, g.size = name, e.disk, e.disk.Size()
	g.options.PreferredBlockSize = max(4096, uint32(e.disk.BlockSize()))
	plain := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	plain = append(plain, name...)
	g.forwardOption(id, append(plain, 0, 0))
	return nil
}

// exportNameReply is the reply to EXPORT_NAME: the size, the flags, and zeros for clients that
// have not refused them.
func (g *guard) exportNameReply() []byte {
	b := make([]byte, 0, exportNameLen+exportNameZeros)
	b = binary.BigEndian.AppendUint64(b, uint64(g.size))
	b = binary.BigEndian.AppendUint16(b, transmissionFlags)
	if !g.noZeroes {
		b = b[:exportNameLen+exportNameZeros]
	}
	return b
}

// parseInfoOrGo takes the data of INFO or GO apart; false if a length does not agree
// with the others, or the name is too long.
func parseInfoOrGo(data []byte) (name string, ok bool) {
	if len(data) < 4 {
		return "", false
	}
	n := binary.BigEndian.Uint32(data)
	if data = data[4:]; n > maxName || int(n)+2 > len(data) {
		return "", false
	}
	name, data = string(data[:n]), data[n:]
	return name, len(data) == 2+2*int(binary.BigEndian.Uint16(data))
}

// replyError answers an option with an error and a text for a person.
func (g *guard) replyError(id, kind uint32, text string) error {
	return g.send(append(appendReply(nil, id, kind, len(text)), text...))
}

func appendReply(b []byte, option, kind uint32, length int) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// sendReplies sends go-nbd's answers to the last option, with the export's flags
// made right, and leaves the handshake after GO.
func (g *guard) sendReplies() error {
	if len(g.replies) == 0 {
		return nil
	}
	last, exports, err := g.patch(g.replies)
	if err != nil {
		return err
	}
	chosen := g.option == optGo || g.option == optInfo
	if chosen && (exports != 1 || last != repAck) {
		return fmt.Errorf("%w: %d descriptions of an export, then type %#x", errReply, exports, last)
	}
	if g.option == optGo {
		// Before the client can know, so that its next message finds all in place.
		g.phase = atRequests
		g.server.establish(g.client)
	}
	answer := g.replies
	if g.byExportName {
		answer = g.exportNameReply()
	}
	if err := g.send(answer); err != nil {
		return err
	}
	g.replies = g.replies[:0]
	if g.phase == atRequests {
		g.replies = nil
		return g.conn.SetDeadline(time.Time{})
	}
	return nil
}

// patch goes through replies to one option and puts the right transmission flags
// into the descriptions of the export. It returns the type of the last reply and
// the number of descriptions.
func (g *guard) patch(b []byte) (last uint32, exports int, err error) {
	for len(b) > 0 {
		if len(b) < optionReplyLen {
			return 0, 0, fmt.Errorf("%w: %d bytes left over", errReply, len(b))
		}
		option, n := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[16:])
		if binary.BigEndian.Uint64(b) != protocol.NEGOTIATION_MAGIC_REPLY || option != g.option || uint64(n) > uint64(len(b)-optionReplyLen) {
			return 0, 0, fmt.Errorf("%w: to option %d, of %d bytes", errReply, option, n)
		}
		last = binary.BigEndian.Uint32(b[12:])
		data := b[optionReplyLen:][:n]
		b = b[optionReplyLen+n:]
		if last != repInfo || len(data) < 2 || binary.BigEndian.Uint16(data) != protocol.NEGOTIATION_TYPE_INFO_EXPORT {
			continue
		}
		if len(data) != infoExportLen || binary.BigEndian.Uint64(data[2:]) != uint64(g.size) {
			return 0, 0, fmt.Errorf("%w: export description of %d bytes", errReply, len(data))
		}
		binary.BigEndian.PutUint16(data[10:], transmissionFlags)
		exports++
	}
	return last, exports, nil
}
