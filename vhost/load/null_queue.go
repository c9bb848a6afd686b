package load

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"cowblk/eventfd"
	"cowblk/vhost"
	"cowblk/vhost/blk"
	"cowblk/vhost/guest"
	"cowblk/vhost/virtq"
)

// nullQueue is a running ring. Between resume and pause it belongs to a goroutine on its own
// thread, otherwise to the session.
type nullQueue struct {
	ring   *virtq.Split
	num    uint16
	desc   uint64 // front-end virtual addresses
	avail  uint64
	used   uint64
	memory *guest.Table
	parser *blk.Parser
	chain  virtq.Chain
	req    blk.Request
	broken bool

	kick, call, fault int // eventfds; -1: none
	wake              int // to interrupt the goroutine's sleep in pause
	fds               [2]unix.PollFd
	halt              atomic.Bool
	halted            chan struct{}
}

const (
	// nullBatch is the number of requests completed with one store: large enough to amortise the
	// store, small enough that the driver works concurrently.
	nullBatch = 8
	// nullPolls is how often an idle queue polls its ring before it sleeps.
	nullPolls = 20_000
)

func newNullQueue(c *blk.Config, vq vhost.Queue) (*nullQueue, error) {
	q := &nullQueue{
		num: vq.Num, desc: vq.Desc, avail: vq.Avail, used: vq.Used,
		kick: vq.Kick, call: vq.Call, fault: vq.Err, wake: -1,
		parser: blk.NewParser(c, vq.Features),
	}
	desc, avail, used, err := virtq.MapSplit(vq.Memory, vq.Num, vq.Desc, vq.Avail, vq.Used)
	if err == nil {
		q.ring, err = virtq.NewSplit(virtq.SplitConfig{
			Num: vq.Num, Desc: desc, Avail: avail, Used: used, Base: vq.Base,
			EventIdx: vq.Features&virtq.FeatureEventIdx != 0,
			Indirect: vq.Features&virtq.FeatureIndirectDesc != 0,
		})
	}
	if err == nil {
		q.wake, err = eventfd.New()
	}
	if err != nil {
		q.close()
		return nil, fmt.Errorf("queue %d: %w", vq.Index, err)
	}
	q.memory = vq.Memory
	q.memory.Acquire()
	return q, nil
}

func (q *nullQueue) close() {
	for _, fd := range []int{q.kick, q.call, q.fault, q.wake} {
		eventfd.Close(fd)
	}
	if q.memory != nil {
		q.memory.Release()
	}
}

func (q *nullQueue) setMemory(t *guest.Table) error {
	desc, avail, used, err := virtq.MapSplit(t, q.num, q.desc, q.avail, q.used)
	if err == nil {
		err = q.ring.SetMemory(desc, avail, used)
	}
	if err != nil {
		return err
	}
	t.Acquire()
	q.memory.Release()
	q.memory = t
	return nil
}

func (q *nullQueue) resume() {
	q.halt.Store(false)
	q.halted = make(chan struct{})
	go q.run()
}

func (q *nullQueue) pause() {
	q.halt.Store(true)
	_ = eventfd.Signal(q.wake)
	<-q.halted
	_, _ = eventfd.Drain(q.wake)
}

func (q *nullQueue) run() {
	defer close(q.halted)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	q.ring.SuppressKicks()
	for idle := 0; !q.halt.Load(); {
		if q.batch() {
			idle = 0
			continue
		}
		if idle++; idle < nullPolls && !q.broken || q.kick < 0 {
			continue
		}
		if idle = 0; !q.ring.EnableKicks() {
			q.fds = [2]unix.PollFd{{Fd: int32(q.kick), Events: unix.POLLIN},
				{Fd: int32(q.wake), Events: unix.POLLIN}}
			_, _ = unix.Poll(q.fds[:], -1)
			if q.fds[0].Revents != 0 {
				_, _ = eventfd.Drain(q.kick)
			}
		}
		q.ring.SuppressKicks()
	}
}

// batch completes what is available, up to nullBatch requests.
func (q *nullQueue) batch() (some bool) {
	if q.broken {
		return false
	}
	for range nullBatch {
		head, ok, err := q.ring.Next()
		if err == nil && !ok {
			break
		}
		if err == nil {
			err = q.complete(head)
		}
		if err != nil {
			q.broken = true
			_ = eventfd.Signal(q.fault)
			return false
		}
		some = true
	}
	if some && q.ring.Publish() {
		_ = eventfd.Signal(q.call)
	}
	return some
}

func (q *nullQueue) complete(head uint16) error {
	q.chain.Head = head
	if err := q.ring.Load(q.memory, &q.chain); err != nil {
		return err
	}
	status, err := q.parser.Parse(&q.chain, &q.req)
	if err != nil {
		return err
	}
	if status == blk.StatusPending {
		status = blk.StatusOK
	}
	q.ring.Push(head, q.req.Finish(status))
	return nil
}
