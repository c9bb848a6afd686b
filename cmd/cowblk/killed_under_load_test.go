package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/daemon"
	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// killCyclesEnv overrides killCycles, the number of kills in TestKilledUnderLoad.
const (
	killCyclesEnv = "COWBLK_KILL_CYCLES"
	killCycles    = 40
	// killCyclesLarge is the number of kills for each kind of large ring.
	killCyclesLarge = 10
	// cyclesADisk bounds the layers that promotions add to a disk.
	cyclesADisk = 100
)

// The load: on each of some queues, up to depth requests in flight, each on a different block of
// that queue's range.
const (
	killQueues = 4
	killDepth  = 64 // default
	killBlock  = 4096
	killBlocks = 1500 // per queue
)

// killLoad is a guest that checks all data that it reads.
type killLoad struct {
	t      *testing.T
	f      *frontend.Frontend
	queues [killQueues]*killQueue
	stop   atomic.Bool
	paused chan int // queues that have lost the connection or ended
	resume [killQueues]chan struct{}
}

// killQueue is one queue. It belongs to its goroutine.
type killQueue struct {
	l        *killLoad
	index    int
	d        *frontend.Driver
	rng      *rand.Rand
	versions [killBlocks]uint64 // of the last completed write
	busy     [killBlocks]bool
	slots    []killRequest
	done     []frontend.Completion
	err      error // read after paused
	requests int
}

type killRequest struct {
	op      frontend.Op
	block   int
	version uint64 // written
}

func newKillLoad(t *testing.T, f *frontend.Frontend, seed uint64) *killLoad {
	l := &killLoad{t: t, f: f, paused: make(chan int, killQueues)}
	for i := range l.queues {
		l.queues[i] = &killQueue{l: l, index: i, d: f.Driver(i),
			rng: rand.New(rand.NewPCG(seed, uint64(i))), slots: make([]killRequest,
				f.Driver(i).Slots())}
		l.resume[i] = make(chan struct{})
	}
	return l
}

// stamp fills a block with queue, block and version; version 0 is zeros.
func (q *killQueue) stamp(p []byte, block int, version uint64) {
	clear(p)
	if version == 0 {
		return
	}
	for i := 0; i < len(p); i += 512 {
		binary.LittleEndian.PutUint64(p[i:], version)
		binary.LittleEndian.PutUint32(p[i+8:], uint32(q.index))
		binary.LittleEndian.PutUint32(p[i+12:], uint32(block))
		binary.LittleEndian.PutUint32(p[i+508:], uint32(version))
	}
}

func (q *killQueue) check(p []byte, block int, version uint64) error {
	want := make([]byte, len(p))
	q.stamp(want, block, version)
	for i := range want {
		if p[i] != want[i] {
			at := i &^ 511
			return fmt.Errorf(
				"queue %d, block %d: sector %d holds version %d of queue %d, block %d; expected version %d",
				q.index, block, at/512, binary.LittleEndian.Uint64(p[at:]),
				binary.LittleEndian.Uint32(p[at+8:]), binary.LittleEndian.Uint32(p[at+12:]),
				version)
		}
	}
	return nil
}

func (q *killQueue) offset(block int) int64 {
	return (int64(q.index)*killBlocks + int64(block)) * killBlock
}

// submit puts a new request on a free slot.
func (q *killQueue) submit(slot int) error {
	r := &q.slots[slot]
	if q.rng.IntN(50) == 0 {
		*r = killRequest{op: frontend.OpFlush, block: -1}
		return q.d.Submit(slot, r.op, 0, 0)
	}
	block := q.rng.IntN(killBlocks)
	for q.busy[block] {
		block = (block + 1) % killBlocks
	}
	q.busy[block] = true
	*r = killRequest{op: frontend.OpRead, block: block, version: q.versions[block]}
	if q.rng.IntN(3) > 0 {
		r.op = frontend.OpWrite
		r.version++
		q.stamp(q.d.Buffer(slot)[:killBlock], block, r.version)
	} else {
		q.d.Buffer(slot)[0] ^= 0xff // so that old data is not mistaken for read data
	}
	return q.d.Submit(slot, r.op, q.offset(block), killBlock)
}

// finish checks a completed request.
func (q *killQueue) finish(c frontend.Completion) error {
	r := &q.slots[c.ID]
	q.requests++
	if c.Status != frontend.StatusOK {
		return fmt.Errorf("queue %d: request type %d on block %d: status %d", q.index, r.op,
			r.block, c.Status)
	}
	if r.block < 0 {
		return nil
	}
	q.busy[r.block] = false
	if r.op == frontend.OpWrite {
		q.versions[r.block] = r.version
		return nil
	}
	return q.check(q.d.Buffer(c.ID)[:killBlock], r.block, r.version)
}

// run keeps the queue full until the load is stopped, then waits for all requests.
func (q *killQueue) run() error {
	for slot := range q.slots {
		if err := q.submit(slot); err != nil {
			return err
		}
	}
	for {
		if err := q.d.Kick(); err != nil {
			return err
		}
		err := q.d.Wait()
		if errors.Is(err, frontend.ErrDisconnected) {
			q.l.paused <- q.index
			<-q.l.resume[q.index]
			continue
		}
		if err != nil {
			return err
		}
		q.done = q.d.Poll(q.done[:0])
		if err := q.d.Err(); err != nil {
			return err // such as a slot that was returned twice
		}
		for _, c := range q.done {
			if err := q.finish(c); err != nil {
				return err
			}
			if !q.l.stop.Load() {
				if err := q.submit(c.ID); err != nil {
					return err
				}
			}
		}
		if q.d.InFlight() == 0 {
			return nil
		}
	}
}

// reconnect waits until all queues have lost the connection and connects them to the next process.
// An accepted connection must be served, because some front-ends do not survive a second
// disconnect.
func (l *killLoad) reconnect(socket string) {
	l.t.Helper()
	for range killQueues {
		i := <-l.paused
		test.Must(l.t, l.queues[i].err)
	}
	test.Eventually(l.t, "the next process serves", func() bool {
		err := l.f.Reconnect(socket)
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
			test.Must(l.t, err)
		}
		return err == nil
	})
	for i := range l.resume {
		l.resume[i] <- struct{}{}
	}
}

// verify reads every block.
func (l *killLoad) verify(f *frontend.Frontend) {
	l.t.Helper()
	p := make([]byte, killBlock)
	for i, q := range l.queues {
		for block, version := range q.versions {
			test.Must(l.t, test.Err(f.Driver(i).ReadAt(p, q.offset(block))))
			test.Must(l.t, q.check(p, block, version))
		}
	}
}

// killStats counts the events of one disk under load.
type killStats struct {
	kills, promotions, promoted, layers, requests int
}

// killRing describes the front-end's rings. Zero value: 128 descriptors, killDepth requests in
// flight on each.
type killRing struct {
	size, asked uint16 // asked: queue size in GET_INFLIGHT_FD
	depth       int
}

// underLoad kills the process that serves a disk n times.
func underLoad(t *testing.T, n int, seed uint64, ring killRing) (sum killStats) {
	dir := shortDir(t)
	defer os.RemoveAll(dir)
	command(t, dir, "create", "a", "--size", "32M")
	socket := filepath.Join(dir, "run", "a.sock")
	p := start(t, dir, nil, "serve", "a")
	rng := rand.New(rand.NewPCG(seed, 99))
	f := dialWith(t, socket, frontend.Options{
		Queues: killQueues, QueueSize: ring.size, InflightQueueSize: ring.asked,
		Slots: cmp.Or(ring.depth, killDepth), MaxTransfer: killBlock, Memory: 32 << 20,
	})
	l := newKillLoad(t, f, seed)
	var wg sync.WaitGroup
	for i, q := range l.queues {
		wg.Go(func() {
			if q.err = q.run(); q.err != nil {
				l.paused <- i
			}
		})
	}
	for range n {
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		var promotion chan error
		if rng.IntN(4) == 0 {
			promotion = make(chan error, 1)
			sum.promotions++
			tag := fmt.Sprint("t", sum.promotions)
			go func() { promotion <- promoteOver(dir, tag) }()
			// During the promotion, or while the former head is sealed.
			if rng.IntN(2) == 0 {
				time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			} else {
				err := <-promotion
				promotion <- err
				time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
			}
		}
		test.Must(t, p.cmd.Process.Kill())
		_ = p.cmd.Wait() // killed
		sum.kills++
		if promotion != nil && <-promotion == nil {
			sum.promoted++
		}
		p = start(t, dir, nil, "serve", "a")
		l.reconnect(socket)
	}
	l.stop.Store(true)
	wg.Wait()
	for _, q := range l.queues {
		if q.err != nil {
			t.Fatalf("after %d kills: %v\n%s", sum.kills, q.err, p.log.String())
		}
		sum.requests += q.requests
	}
	l.verify(f)
	test.Must(t, f.Close())
	p.end(t)
	m := manifestOf(t, dir, "a")
	if sum.layers = len(m.Layers); sum.layers < 1+sum.promoted {
		t.Errorf("%d layers after %d promotions that were reported", sum.layers, sum.promoted)
	}
	// The content after an orderly close is the same.
	p = start(t, dir, nil, "serve", "a")
	f = dialWith(t, socket, frontend.Options{Queues: killQueues})
	l.verify(f)
	test.Must(t, f.Close())
	p.end(t)
	return sum
}

func promoteOver(dir, tag string) error {
	c, err := control.Dial(filepath.Join(dir, "run", "a.ctl"), 5*time.Second)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return c.Run(ctx, "cow-promote", daemon.PromoteArgs{Disks: []string{"a"}, Tag: tag}, nil)
}

// The process is killed repeatedly at any moment, with 64 requests in flight on each of four
// queues, and sometimes during a promotion. Every request completes once and without an error, and
// every read returns the last write, flushed or not.
func TestKilledUnderLoad(t *testing.T) {
	cycles := killCycles
	if s := os.Getenv(killCyclesEnv); s != "" {
		var err error
		if cycles, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", killCyclesEnv, err)
		}
	}
	killOften(t, cycles, killRing{})
}

// The same with rings larger than the queue size in GET_INFLIGHT_FD, as of QEMU 10.0.13, and with
// enough requests in flight that head indexes exceed it.
func TestKilledUnderLoadLargerRings(t *testing.T) {
	for _, ring := range []killRing{
		{size: 256, asked: 128, depth: 200},
		{size: 1024, asked: 128, depth: 500},
	} {
		t.Run(fmt.Sprint(ring.size), func(t *testing.T) { killOften(t, killCyclesLarge, ring) })
	}
}

func killOften(t *testing.T, cycles int, ring killRing) {
	t.Helper()
	var sum killStats
	for seed := uint64(1); sum.kills < cycles; seed++ {
		one := underLoad(t, min(cyclesADisk, cycles-sum.kills), seed, ring)
		sum.kills += one.kills
		sum.promotions += one.promotions
		sum.promoted += one.promoted
		sum.layers += one.layers - 1
		sum.requests += one.requests
	}
	t.Logf("%d kills, %d of them soon after a promotion was asked for, of which %d were reported and %d had happened; %d requests",
		sum.kills, sum.promotions, sum.promoted, sum.layers, sum.requests)
}
