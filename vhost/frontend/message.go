package frontend

import (
	"errors"
	"fmt"
	"time"

	"cowblk/vhost"
	"cowblk/vhost/guest"
)

// ErrRefused reports that the back-end answered a message with an error.
var ErrRefused = errors.New("refused by the back-end")

// Send sends a message with its correct framing and does not wait. The caller keeps the
// descriptors.
func (f *Frontend) Send(r vhost.Request, flags uint32, payload []byte, fds ...int) error {
	if err := f.deadline(); err != nil {
		return err
	}
	return f.conn.WriteMessage(vhost.Header{Request: r, Flags: flags}, payload, fds...)
}

// SendRaw sends bytes without framing.
func (f *Frontend) SendRaw(b []byte, fds ...int) error {
	if err := f.deadline(); err != nil {
		return err
	}
	return f.conn.WriteRaw(b, fds...)
}

// Receive returns the next message from the back-end. Its payload is valid until the next call; the
// caller closes its descriptors.
func (f *Frontend) Receive() (*vhost.Message, error) {
	if err := f.deadline(); err != nil {
		return nil, err
	}
	return f.conn.ReadMessage()
}

func (f *Frontend) deadline() error { return f.sock.SetDeadline(time.Now().Add(f.opts.Timeout)) }

// query sends a message with its own reply, and checks the reply's framing.
func (f *Frontend) query(r vhost.Request, payload []byte) ([]byte, error) {
	if err := f.Send(r, vhost.FlagVersion, payload); err != nil {
		return nil, fmt.Errorf("%v: %w", r, err)
	}
	return f.answer(r)
}

func (f *Frontend) answer(r vhost.Request) ([]byte, error) {
	m, err := f.Receive()
	if err != nil {
		return nil, fmt.Errorf("%v: answer: %w", r, err)
	}
	m.CloseFDs()
	if m.Request != r || m.Flags != vhost.FlagVersion|vhost.FlagReply {
		return nil, fmt.Errorf("%v: answered by %v with flags %#x, expected flags %#x", r,
			m.Request, m.Flags, vhost.FlagVersion|vhost.FlagReply)
	}
	return m.Payload, nil
}

func (f *Frontend) askU64(r vhost.Request) (uint64, error) {
	b, err := f.query(r, nil)
	if err != nil {
		return 0, err
	}
	v, err := vhost.DecodeU64(b)
	if err != nil {
		return 0, fmt.Errorf("%v: answer: %w", r, err)
	}
	return v, nil
}

// sendAck sends a message without its own reply. If wait is set and REPLY_ACK was negotiated, it
// waits for the acknowledgement. Errors: ErrRefused.
func (f *Frontend) sendAck(wait bool, r vhost.Request, payload []byte, fds ...int) error {
	flags := vhost.FlagVersion
	ack := (wait || f.opts.AckAll) && f.protocol&vhost.ProtocolReplyAck != 0
	if ack {
		flags |= vhost.FlagNeedReply
	}
	if err := f.Send(r, flags, payload, fds...); err != nil {
		return fmt.Errorf("%v: %w", r, err)
	}
	if !ack {
		return nil
	}
	b, err := f.answer(r)
	if err != nil {
		return err
	}
	v, err := vhost.DecodeU64(b)
	if err != nil {
		return fmt.Errorf("%v: acknowledgement: %w", r, err)
	}
	if v != 0 {
		return fmt.Errorf("%v: result %d: %w", r, v, ErrRefused)
	}
	return nil
}

func (f *Frontend) sendU64(r vhost.Request, v uint64) error {
	return f.sendAck(false, r, vhost.AppendU64(nil, v))
}

func (f *Frontend) tellRing(wait bool, r vhost.Request, i int, num uint32) error {
	return f.sendAck(wait, r, vhost.VringState{Index: uint32(i), Num: num}.Append(nil))
}

// sendFD sends an eventfd of ring i, or the bit for none (-1).
func (f *Frontend) sendFD(r vhost.Request, i, fd int) error {
	if fd < 0 {
		return f.sendU64(r, uint64(i)|vhost.VringNoFD)
	}
	return f.sendAck(false, r, vhost.AppendU64(nil, uint64(i)), fd)
}

// Barrier returns when the back-end has handled all messages so far.
func (f *Frontend) Barrier() error {
	_, err := f.askU64(vhost.GetFeatures)
	return err
}

// Config returns n bytes of the device's configuration space from offset off. Errors: ErrRefused if
// the back-end answers with an empty payload.
func (f *Frontend) Config(off, n uint32) ([]byte, error) {
	c := vhost.ConfigSpace{Offset: off, Size: n, Data: make([]byte, n)}
	b, err := f.query(vhost.GetConfig, c.Append(nil))
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%v: %d bytes at %d: empty answer: %w", vhost.GetConfig, n, off,
			ErrRefused)
	}
	got, err := vhost.DecodeConfigSpace(b)
	if err != nil {
		return nil, fmt.Errorf("%v: answer: %w", vhost.GetConfig, err)
	}
	if len(got.Data) != int(n) {
		return nil, fmt.Errorf("%v: answer of %d bytes, expected %d", vhost.GetConfig,
			len(got.Data), n)
	}
	return append([]byte(nil), got.Data...), nil
}

// SetConfig writes into the device's configuration space, as a guest does. Errors: ErrRefused.
func (f *Frontend) SetConfig(off uint32, p []byte) error {
	return f.sendAck(true, vhost.SetConfig, vhost.ConfigSpace{Offset: off, Size: uint32(len(p)),
		Data: p}.Append(nil))
}

// ShareMemory announces all regions in one table, which replaces the former one.
func (f *Frontend) ShareMemory(regions ...guest.RegionDesc) error {
	fds := make([]int, len(regions))
	for i := range fds {
		fds[i] = f.mem.fd
	}
	return f.sendAck(true, vhost.SetMemTable, vhost.AppendMemTable(nil, regions), fds...)
}

// AddRegion announces another region of the guest's memfd.
func (f *Frontend) AddRegion(r guest.RegionDesc) error {
	return f.sendAck(true, vhost.AddMemReg, vhost.AppendMemReg(nil, r), f.mem.fd)
}

// RemoveRegion withdraws a region.
func (f *Frontend) RemoveRegion(r guest.RegionDesc) error {
	return f.sendAck(true, vhost.RemMemReg, vhost.AppendMemReg(nil, r))
}
