package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// nextOption reads one option completely, and answers it or forwards it to go-nbd in its simplest
// form.
func (g *guard) nextOption() error {
	if g.count++; g.count > maxOptions {
		return protocolf("more than %d options", maxOptions)
	}
	var header [optionHeaderLen]byte
	if _, err := io.ReadFull(g.br, header[:]); err != nil {
		return err
	}
	magic := binary.BigEndian.Uint64(header[:])
	id, n := binary.BigEndian.Uint32(header[8:]), binary.BigEndian.Uint32(header[12:])
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
	// ABORT, and all options that go-nbd answers with ERR_UNSUP, are forwarded without data.
	g.forwardOption(id, nil)
	return nil
}

// forwardOption passes an option to go-nbd.
func (g *guard) forwardOption(id uint32, data []byte) {
	b := binary.BigEndian.AppendUint64(g.inputBuf[:0], protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	g.input, g.option = append(b, data...), id
}

// list answers LIST with one reply for each name.
func (g *guard) list() error {
	var b []byte
	for _, name := range g.server.names() {
		b = appendReply(b, optList, repServer, 4+len(name))
		b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
		b = append(b, name...)
	}
	return g.send(appendReply(b, optList, repAck, 0))
}

// infoOrGo handles INFO and GO. Their data is the length of the name, the name, the number of
// information requests, and two bytes for each. go-nbd sends all information, so the requests are
// not forwarded.
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

// exportName handles EXPORT_NAME, the only option of clients without fixed newstyle. Its data is
// the name. go-nbd does not know it and gets GO.
func (g *guard) exportName(name string) error {
	if len(name) > maxName {
		return protocolf("EXPORT_NAME with %d bytes, at most %d are allowed", len(name), maxName)
	}
	g.byExportName = true
	err := g.pinExport(optGo, name)
	if err != nil {
		// The protocol has no error reply to it ("NBD_OPT_EXPORT_NAME").
		return fmt.Errorf("export %q (NBD_OPT_EXPORT_NAME): %w", name, err)
	}
	return nil
}

// pinExport pins the export and forwards the option that selects it.
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

// exportNameReply returns the reply to EXPORT_NAME: size, flags, and zeros unless the client has
// set NO_ZEROES.
func (g *guard) exportNameReply() []byte {
	b := make([]byte, 0, exportNameLen+exportNameZeros)
	b = binary.BigEndian.AppendUint64(b, uint64(g.size))
	b = binary.BigEndian.AppendUint16(b, transmissionFlags)
	if !g.noZeroes {
		b = b[:exportNameLen+exportNameZeros]
	}
	return b
}

// parseInfoOrGo parses the data of INFO or GO; false: the lengths disagree, or the name is too
// long.
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

// replyError answers an option with an error and a text.
func (g *guard) replyError(id, kind uint32, text string) error {
	return g.send(append(appendReply(nil, id, kind, len(text)), text...))
}

func appendReply(b []byte, option, kind uint32, length int) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// sendReplies sends go-nbd's replies to the last option, with corrected flags. After GO the
// handshake ends.
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
		return fmt.Errorf("%w: %d descriptions of an export, then type %#x",
			errReply, exports, last)
	}
	if g.option == optGo {
		// Before the reply, because the client's next message may follow at once.
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
		return g.Conn.SetDeadline(time.Time{})
	}
	return nil
}

// patch sets the transmission flags in replies to one option. It returns the type of the last reply
// and the number of NBD_INFO_EXPORT descriptions.
func (g *guard) patch(b []byte) (last uint32, exports int, err error) {
	for len(b) > 0 {
		if len(b) < optionReplyLen {
			return 0, 0, fmt.Errorf("%w: %d bytes left over", errReply, len(b))
		}
		option, n := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[16:])
		if binary.BigEndian.Uint64(b) != protocol.NEGOTIATION_MAGIC_REPLY || option != g.option ||
			uint64(n) > uint64(len(b)-optionReplyLen) {
			return 0, 0, fmt.Errorf("%w: to option %d, of %d bytes", errReply, option, n)
		}
		last = binary.BigEndian.Uint32(b[12:])
		data := b[optionReplyLen:][:n]
		b = b[optionReplyLen+n:]
		if last != repInfo || len(data) < 2 ||
			binary.BigEndian.Uint16(data) != protocol.NEGOTIATION_TYPE_INFO_EXPORT {
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
