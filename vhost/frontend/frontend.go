package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"cowblk/vhost"
)

// Frontend is one vhost-user connection with its memory and rings.
type Frontend struct {
	sock   *net.UnixConn
	sockFD int // valid while sock is open
	conn   *vhost.Conn
	opts   Options

	offered, features uint64 // virtio
	protocol          uint64
	status            uint8
	maxQueues         int
	space             []byte // configuration space at connection; nil without CONFIG
	mem               *Memory
	shared            bool // the back-end has the memory table
	started           bool
	drivers           []*Driver
	inflight          *inflight // nil: none yet
	backendReq        int       // our end of the back-end's channel
}

// Dial connects to a back-end's socket, see New.
func Dial(socket string, o Options) (*Frontend, error) {
	sock, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("front-end: %w", err)
	}
	return New(sock, o)
}

// New negotiates on a connection, which it then owns, shares memory and starts the rings unless
// Options.NoStart is set.
func New(sock *net.UnixConn, o Options) (*Frontend, error) {
	f := &Frontend{sock: sock, conn: vhost.NewConn(sock), sockFD: -1, backendReq: -1}
	err := f.open(o)
	if err == nil && !o.NoStart {
		err = f.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("front-end: %w", err), f.Abort())
	}
	return f, nil
}

func (f *Frontend) open(o Options) (err error) {
	if f.opts, err = o.withDefaults(); err != nil {
		return err
	}
	if f.mem, err = newMemory(f.opts.Memory, f.opts.Regions, f.opts.Hugepages); err != nil {
		return err
	}
	if err := f.useConn(); err != nil {
		return err
	}
	if err := f.makeDrivers(); err != nil {
		return err
	}
	return f.announce()
}

// useConn adopts a new connection and negotiates.
func (f *Frontend) useConn() error {
	raw, err := f.sock.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { f.sockFD = int(fd) }); err != nil {
		return err
	}
	return f.negotiate()
}

// announce sends the messages about rings that QEMU sends when it connects; it does not repeat the
// error descriptors.
func (f *Frontend) announce() error {
	if f.opts.Style == SPDK {
		return nil
	}
	for i, d := range f.drivers {
		if err := f.sendFD(vhost.SetVringCall, i, d.callFD()); err != nil {
			return err
		}
		if err := f.sendFD(vhost.SetVringErr, i, d.err); err != nil {
			return err
		}
	}
	return nil
}

// negotiate sends the messages of QEMU's initialization, up to the start of the rings.
func (f *Frontend) negotiate() (err error) {
	if f.opts.Style == SPDK {
		if err := f.sendAck(false, vhost.SetOwner, nil); err != nil {
			return err
		}
	}
	if f.offered, err = f.askU64(vhost.GetFeatures); err != nil {
		return err
	}
	f.features = f.offered & DriverFeatures &^ f.opts.Refuse
	hasProtocol := f.offered&vhost.FeatureProtocolFeatures != 0 && !f.opts.NoProtocol
	if hasProtocol {
		f.features |= vhost.FeatureProtocolFeatures
	}
	if f.opts.Style == SPDK {
		if err := f.sendU64(vhost.SetFeatures, f.features); err != nil {
			return err
		}
	}
	f.maxQueues = 1
	if hasProtocol {
		if err := f.negotiateProtocol(); err != nil {
			return err
		}
	}
	if f.maxQueues < f.opts.Queues {
		return fmt.Errorf("the back-end has %d queues, expected at least %d", f.maxQueues,
			f.opts.Queues)
	}
	if f.opts.Style == QEMU {
		if err := f.sendAck(false, vhost.SetOwner, nil); err != nil {
			return err
		}
	}
	// QEMU reads it at its start, and not again when it reconnects.
	if f.protocol&vhost.ProtocolConfig != 0 && f.space == nil {
		f.space, err = f.Config(0, configSize)
	}
	return err
}

func (f *Frontend) negotiateProtocol() error {
	p, err := f.askU64(vhost.GetProtocolFeatures)
	if err != nil {
		return err
	}
	p &= f.opts.Protocol
	if err := f.sendU64(vhost.SetProtocolFeatures, p); err != nil {
		return err
	}
	f.protocol = p
	if p&vhost.ProtocolMQ != 0 {
		n, err := f.askU64(vhost.GetQueueNum)
		if err != nil {
			return err
		}
		f.maxQueues = int(min(n, vhost.MaxQueues))
	}
	if p&vhost.ProtocolConfigureMemSlots != 0 {
		n, err := f.askU64(vhost.GetMaxMemSlots)
		if err != nil {
			return err
		}
		if n < uint64(f.opts.Regions) {
			return fmt.Errorf("the back-end has %d memory slots, expected at least %d", n,
				f.opts.Regions)
		}
	}
	if p&vhost.ProtocolBackendReq != 0 {
		return f.giveBackendChannel()
	}
	return nil
}

func (f *Frontend) giveBackendChannel() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("channel for the back-end: %w", err)
	}
	f.backendReq = pair[0]
	err = f.sendAck(true, vhost.SetBackendReqFD, nil, pair[1])
	return errors.Join(err, unix.Close(pair[1]))
}

func (f *Frontend) makeDrivers() error {
	rings := make([]*Ring, f.opts.Queues)
	for i := range rings {
		var err error
		if rings[i], err = newRing(f.mem, f.opts.QueueSize); err != nil {
			return err
		}
	}
	for i, r := range rings {
		d, err := newDriver(f, i, r)
		if err != nil {
			return err
		}
		f.drivers = append(f.drivers, d)
	}
	return nil
}

// configSize is the size that QEMU reads: struct virtio_blk_config up to and including
// write_zeroes_may_unmap, in bytes.
const configSize = 57

// Capacity returns the device's size in bytes, 0 if the back-end has no configuration space.
func (f *Frontend) Capacity() int64 {
	if f.space == nil {
		return 0
	}
	return int64(binary.LittleEndian.Uint64(f.space)) * 512
}

// Offered returns the virtio bits that the back-end offers.
func (f *Frontend) Offered() uint64 { return f.offered }

// Features returns the negotiated virtio bits, with the protocol's.
func (f *Frontend) Features() uint64 { return f.features }

// Protocol returns the negotiated protocol features.
func (f *Frontend) Protocol() uint64 { return f.protocol }

// MaxQueues returns the number of queues of the back-end.
func (f *Frontend) MaxQueues() int { return f.maxQueues }

// Memory returns the guest's memory.
func (f *Frontend) Memory() *Memory { return f.mem }

// Driver returns the driver of ring i.
func (f *Frontend) Driver(i int) *Driver { return f.drivers[i] }

// PeerPID returns the process that listens on the back-end's socket, as the kernel recorded it
// (SO_PEERCRED); 0 if it is in a PID namespace that this process does not see.
func (f *Frontend) PeerPID() (int, error) {
	c, err := unix.GetsockoptUcred(f.sockFD, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("front-end: process of the back-end: %w", err)
	}
	return int(c.Pid), nil
}

// Disconnect ends the connection, so that a waiting driver gets ErrDisconnected. Unlike the other
// methods, it may be called from any goroutine, before Close or Abort, which must follow.
func (f *Frontend) Disconnect() error {
	return errors.Join(f.sock.CloseRead(), f.sock.CloseWrite())
}

// Close stops the rings as QEMU does at exit and disconnects. The error is that of stopping;
// everything is released in any case.
func (f *Frontend) Close() error {
	var err error
	if f.started {
		err = f.Stop()
	}
	return errors.Join(err, f.Abort())
}

// Abort disconnects without messages, like a QEMU that was killed.
func (f *Frontend) Abort() error {
	errs := []error{f.sock.Close()}
	f.sockFD = -1
	for _, d := range f.drivers {
		errs = append(errs, d.close())
	}
	f.drivers = nil
	if f.backendReq >= 0 {
		errs = append(errs, unix.Close(f.backendReq))
		f.backendReq = -1
	}
	errs = append(errs, f.dropInflight())
	if f.mem != nil {
		errs = append(errs, f.mem.close())
		f.mem = nil
	}
	return errors.Join(errs...)
}
