package frontend

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"cowblk/vhost"
)

// inflight is the back-end's in-flight buffer, which a front-end keeps for the next process. As in
// QEMU, it is fetched before the first start, set at every start, and released when the device is
// reset.
type inflight struct {
	fd   int
	desc vhost.Inflight
}

// sendInflight sets the in-flight buffer. If there is none, it fetches one first.
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
		return fmt.Errorf("%v: answered by %v with %d descriptors for %d bytes",
			vhost.GetInflightFD, m.Request, len(m.FDs), got.Size)
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

// Inflight returns the in-flight buffer's descriptor, which the Frontend owns, and its layout; -1:
// there is none.
func (f *Frontend) Inflight() (fd int, desc vhost.Inflight) {
	if f.inflight == nil {
		return -1, vhost.Inflight{}
	}
	return f.inflight.fd, f.inflight.desc
}

// SetInflight makes fd, which the Frontend then owns, the in-flight buffer from the next start on.
// Its content is not checked.
func (f *Frontend) SetInflight(fd int, desc vhost.Inflight) error {
	err := f.dropInflight()
	f.inflight = &inflight{fd: fd, desc: desc}
	return err
}

// Reconnect continues with another back-end process after the connection was lost, as QEMU does:
// the guest, its memory and its rings are unchanged; the memory table and the in-flight buffer are
// sent again. The back-end must complete the requests in flight; no kick is repeated. No Driver may
// be in use meanwhile. After an error it may be called again with the next connection.
func (f *Frontend) Reconnect(socket string) error {
	sock, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("front-end: %w", err)
	}
	return f.ReconnectOn(sock)
}

// ReconnectOn is Reconnect on a connection, which the Frontend then owns.
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
		return fmt.Errorf("front-end: the back-end's features have changed from %#x to %#x",
			features, f.features)
	}
	for _, d := range f.drivers {
		// GET_VRING_BASE was not answered: QEMU uses the index of the last completion that the
		// guest could see.
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
