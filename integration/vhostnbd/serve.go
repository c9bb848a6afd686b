package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
)

// typeFlush is NBD_CMD_FLUSH, which go-nbd does not define.
const typeFlush = uint16(3)

// maxLength bounds one request, in bytes; the kernel has the same bound.
const maxLength = 32 << 20

// disk executes requests. The kernel sees its errors as I/O errors.
type disk interface {
	io.ReaderAt
	io.WriterAt
	Flush() error
}

// serve answers NBD requests in the transmission phase until the client disconnects.
func serve(conn io.ReadWriter, d disk) error {
	var buf []byte
	for {
		var q protocol.TransmissionRequestHeader
		if err := binary.Read(conn, binary.BigEndian, &q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if q.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST || q.Length > maxLength {
			return fmt.Errorf("request %#x of %d bytes: expected %#x, at most %d", q.RequestMagic,
				q.Length, protocol.TRANSMISSION_MAGIC_REQUEST, maxLength)
		}
		if uint32(cap(buf)) < q.Length {
			buf = make([]byte, q.Length)
		}
		data := buf[:q.Length]
		var err error
		switch q.Type {
		case protocol.TRANSMISSION_TYPE_REQUEST_READ:
			_, err = d.ReadAt(data, int64(q.Offset))
		case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
			if _, err := io.ReadFull(conn, data); err != nil {
				return err
			}
			_, err = d.WriteAt(data, int64(q.Offset))
		case typeFlush:
			err = d.Flush()
		case protocol.TRANSMISSION_TYPE_REQUEST_DISC:
			return nil
		default:
			err = fmt.Errorf("request of type %d: %w", q.Type, errors.ErrUnsupported)
		}
		reply := protocol.TransmissionReplyHeader{ReplyMagic: protocol.TRANSMISSION_MAGIC_REPLY,
			Handle: q.Handle}
		if err != nil {
			fmt.Fprintln(os.Stderr, "vhostnbd:", err)
			reply.Error = uint32(unix.EIO)
		}
		if err := binary.Write(conn, binary.BigEndian, reply); err != nil {
			return err
		}
		if q.Type == protocol.TRANSMISSION_TYPE_REQUEST_READ && err == nil {
			if _, err := conn.Write(data); err != nil {
				return err
			}
		}
	}
}
