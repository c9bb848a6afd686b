package vhosttest

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"cowblk/vhost"
)

// inflight is the back-end's in-flight buffer, which a front-end keeps for the
// process that comes next. As in QEMU, it is fetched before the first start,
// set at every start, and given up when the device is reset.
type inflight struct {
	fd   int
	desc vhost.Inflight
}

// sendInflight sets the in-flight buffer, fetched first if there is none.
func (f *Frontend) sendInflight() error {
	if f.protocol&vhost.ProtocolInflightShmfd == 0 {
		return nil
	}
	// The back-end must know the rings' format.
	if err := f.sendU64(vhost.SetFeatures, f.features); err != nil {
		return err
	}
	if f.inflight == nil {
		if err := f.fetchInflight(); err != nil {
			return err
		}
	}
	return f.sendAck(false, vhost.SetInflightFD, f.inflight.desc.Append(nil), f.inflight.fd)
}

func (f *Frontend) fetchInflight() error {
	want := vhost.Inflight{Queues: uint16(len(f.drivers)), QueueSize: f.opts.InflightQueueSize}
	if err := f.Send(vhost.GetInflightFD, vhost.FlagVersion, want.Append(nil)); err != nil {
		return fmt.Errorf("%v: %w", vhost.GetInflightFD, err)
	}
	m, err := f.Receive()
	if err != nil {
		return fmt.Errorf("%v: answer: %w", vhost.GetInflightFD, err)
	}
	defer m.CloseFDs()
	got, err := vhost.DecodeInflight(m.Payload)
	switch {
	case err != nil:
		return fmt.Errorf("%v: answer: %w", vhost.GetInflightFD, err)
	case m.Request != vhost.GetInflightFD || len(m.FDs) != 1 || got.Size == 0:
		return fmt.Errorf("%v: answered by %v with %d descriptors for %d bytes", vhost.GetInflightFD, m.Request, len(m.FDs), got.Size)
	}
	got.Queues, got.QueueSize = want.Queues, want.QueueSize
	f.inflight = &inflight{fd: m.TakeFD(), desc: got}
	return nil
}

func (f *Frontend) dropInflight() error {
	if f.inflight == nil {
		return nil
	}
	err := unix.Close(f.inflight.fd)
	f.inflight = nil
	return err
}

// Inflight returns the in-flight buffer's descriptor, which stays the
// Frontend's, and how it is laid out; -1: there is none.
func (f *Frontend) Inflight() (fd int, desc vhost.Inflight) {
	if f.inflight == nil {
		return -1, vhost.Inflight{}
	}
	return f.inflight.fd, f.inflight.desc
}

// SetInflight makes fd, which becomes the Frontend's, the in-flight buffer that is
// set from the next start on, whatever it holds.
func (f *Frontend) SetInflight(fd int, desc vhost.Inflight) error {
	err := f.dropInflight()
	f.inflight = &inflight{fd: fd, desc: desc}
	return err
}

// Reconnect goes on with another back-end process after the connection has been
// lost, as QEMU does: the guest, its memory and its rings stay what they are, the
// memory table is sent anew, and so is the in-flight buffer. What was in flight
// is the back-end's to do; no kick is repeated. No Driver may be in use
// meanwhile. If it fails, it may be called again with the next connection.
func (f *Frontend) Reconnect(socket string) error {
	sock, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("front-end: %w", err)
	}
	return f.ReconnectOn(sock)
}

// ReconnectOn is Reconnect on a connection, which the Frontend owns from now on.
func (f *Frontend) ReconnectOn(sock *net.UnixConn) error {
	_ = f.sock.Close() // it may be closed already
	if f.backendReq >= 0 {
		_ = unix.Close(f.backendReq)
		f.backendReq = -1
	}
	f.sock, f.conn = sock, vhost.NewConn(sock)
	f.shared, f.started, f.status = false, false, 0
	features := f.features
	if err := f.useConn(); err != nil {
		return fmt.Errorf("front-end: reconnecting: %w", err)
	}
	if f.features != features {
		return fmt.Errorf("front-end: the back-end's features have changed from %#x to %#x", features, f.features)
	}
	for _, d := range f.drivers {
		// GET_VRING_BASE was not answered: QEMU takes what the guest has
		// seen done for where the device stands.
		d.base = d.ring.UsedIdx()
	}
	err := f.announce()
	if err == nil {
		err = f.Start()
	}
	if err != nil {
		return fmt.Errorf("front-end: reconnecting: %w", err)
	}
	return nil
}
