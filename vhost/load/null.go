package load

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// nullSize is the size of the null back-end's disk in bytes.
const nullSize = 1 << 40

// Null is a back-end that parses requests and completes them at once, without data, to measure the
// driver's side. Each queue has a thread.
type Null struct {
	config blk.Config
	queues []*nullQueue // by index; nil: not running
	ended  chan error   // what Serve returned
}

// startNull serves one connection, whose other end it returns, until that is closed.
func startNull(queues int) (*Null, *net.UnixConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket pair")
		c, ferr := net.FileConn(f)
		err = errors.Join(err, ferr, f.Close())
		ends[i], _ = c.(*net.UnixConn)
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	n := newNull(queues)
	go func() { n.ended <- vhost.Serve(ends[1], n, vhost.Options{}) }()
	return n, ends[0], nil
}

func newNull(queues int) *Null {
	return &Null{
		config: blk.Config{Sectors: nullSize / blk.SectorSize, BlkSize: 4096, SegMax: 126,
			Queues: uint16(queues), ID: "null"},
		queues: make([]*nullQueue, queues),
		ended:  make(chan error, 1),
	}
}

// wait returns the error of the connection when it has ended.
func (n *Null) wait() error { return <-n.ended }

// Features and the following methods implement vhost.Backend.
func (n *Null) Features() uint64 {
	return n.config.Features() | virtq.FeatureIndirectDesc |
		virtq.FeatureEventIdx | vhost.FeatureVersion1
}

func (n *Null) SetFeatures(uint64) error { return nil }

func (n *Null) Queues() int { return len(n.queues) }

func (n *Null) Config(p []byte) error {
	space := n.config.Space(true)
	clear(p[copy(p, space[:]):])
	return nil
}

func (n *Null) SetConfig(uint32, []byte) error { return errors.New("nothing can be changed") }

func (n *Null) SetStatus(uint8) {}

func (n *Null) NeedsReset() bool { return false }

func (n *Null) Reset() {}

// SetMemory moves running queues, each between two batches.
func (n *Null) SetMemory(t *guest.Table) (err error) {
	for _, q := range n.queues {
		if q == nil {
			continue
		}
		q.pause()
		err = errors.Join(err, q.setMemory(t))
		q.resume()
	}
	return err
}

func (n *Null) StartQueue(vq vhost.Queue) error {
	q, err := newNullQueue(&n.config, vq)
	if err != nil {
		return err
	}
	n.queues[vq.Index] = q
	q.resume()
	return nil
}

func (n *Null) StopQueue(i int) (base uint16, err error) {
	q := n.queues[i]
	n.queues[i] = nil
	q.pause()
	q.close()
	return q.ring.Base(), nil
}

func (n *Null) SetCall(i, fd int) {
	q := n.queues[i]
	q.pause()
	eventfd.Close(q.call)
	q.call = fd
	_ = eventfd.Signal(fd)
	q.resume()
}

func (n *Null) SetErr(i, fd int) {
	q := n.queues[i]
	q.pause()
	eventfd.Close(q.fault)
	q.fault = fd
	q.resume()
}
