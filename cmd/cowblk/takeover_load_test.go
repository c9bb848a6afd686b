package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"cowblk/internal/test"
	"cowblk/vhost/frontend"
)

// steadyLoad writes and reads blocks continuously, as a guest whose QEMU reconnects at once, and
// knows the content of each block.
type steadyLoad struct {
	t      *testing.T
	socket string
	f      *frontend.Frontend
	blocks uint64
	stop   atomic.Bool
	ended  chan error

	versions []uint32 // by block, of the last completed write
	busy     map[uint64]bool
	slots    []loadSlot
	random   *rand.Rand

	done       atomic.Uint64 // requests
	refused    int           // connections refused
	reconnects atomic.Int64
	gaps       []time.Duration // times without a completion, by reconnection
	gap        time.Duration   // longest time without a completion otherwise
	last       time.Time
}

type loadSlot struct {
	block   uint64
	version uint32 // of the write; 0: a read
	flush   bool
}

const loadDepth = 32

// newLoad starts a load on the first blocks of a disk.
func newLoad(t *testing.T, socket string, blocks uint64) *steadyLoad {
	t.Helper()
	l := &steadyLoad{
		t: t, socket: socket, f: dial(t, socket), blocks: blocks, ended: make(chan error, 1),
		versions: make([]uint32, blocks), busy: map[uint64]bool{},
		random: rand.New(rand.NewPCG(1, 2)),
	}
	l.slots = make([]loadSlot, loadDepth)
	go func() { l.ended <- l.run() }()
	t.Cleanup(func() { l.stop.Store(true) })
	return l
}

func stampBlock(p []byte, block uint64, version uint32) {
	for i := 0; i < len(p); i += 512 {
		binary.LittleEndian.PutUint64(p[i:], block)
		binary.LittleEndian.PutUint32(p[i+8:], version)
	}
}

// checkBlock checks a block; version 0 is a block that was never written.
func checkBlock(p []byte, block uint64, version uint32) error {
	for i := 0; i < len(p); i += 512 {
		b, v := binary.LittleEndian.Uint64(p[i:]), binary.LittleEndian.Uint32(p[i+8:])
		if v != version || v != 0 && b != block {
			return fmt.Errorf("block %d at %d: version %d of block %d, expected version %d", block,
				i, v, b, version)
		}
	}
	return nil
}

func (l *steadyLoad) run() error {
	d := l.f.Driver(0)
	for i := range l.slots {
		if err := l.submit(i); err != nil {
			return err
		}
	}
	l.last = time.Now()
	var done []frontend.Completion
	lost := false // connection lost since the last completion
	for flying := len(l.slots); flying > 0; {
		err := d.Kick()
		if err == nil {
			err = d.Wait()
		}
		if errors.Is(err, frontend.ErrDisconnected) {
			if err := l.reconnect(); err != nil {
				return err
			}
			lost = true
			continue
		}
		if err != nil {
			return err
		}
		done = d.Poll(done[:0])
		if now := time.Now(); len(done) > 0 {
			if gap := now.Sub(l.last); lost {
				l.gaps = append(l.gaps, gap)
			} else {
				l.gap = max(l.gap, gap)
			}
			l.last, lost = now, false
		}
		for _, c := range done {
			if err := l.complete(c); err != nil {
				return err
			}
			if l.stop.Load() {
				flying--
				continue
			}
			if err := l.submit(c.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *steadyLoad) submit(slot int) error {
	d, s := l.f.Driver(0), &l.slots[slot]
	if l.random.IntN(1000) == 0 {
		*s = loadSlot{flush: true}
		return d.Submit(slot, frontend.OpFlush, 0, 0)
	}
	block := l.random.Uint64N(l.blocks)
	for l.busy[block] {
		block = l.random.Uint64N(l.blocks)
	}
	l.busy[block] = true
	*s = loadSlot{block: block}
	if l.random.IntN(4) == 0 {
		return d.Submit(slot, frontend.OpRead, int64(block)*4096, 4096)
	}
	s.version = l.versions[block] + 1
	stampBlock(d.Buffer(slot)[:4096], block, s.version)
	return d.Submit(slot, frontend.OpWrite, int64(block)*4096, 4096)
}

func (l *steadyLoad) complete(c frontend.Completion) error {
	s := &l.slots[c.ID]
	if c.Status != frontend.StatusOK {
		return fmt.Errorf("%+v: status %d", *s, c.Status)
	}
	l.done.Add(1)
	if s.flush {
		return nil
	}
	delete(l.busy, s.block)
	if s.version == 0 {
		return checkBlock(l.f.Driver(0).Buffer(c.ID)[:4096], s.block, l.versions[s.block])
	}
	l.versions[s.block] = s.version
	return nil
}

func (l *steadyLoad) reconnect() error {
	l.reconnects.Add(1)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		err := l.f.Reconnect(l.socket)
		if err == nil {
			return nil
		}
		if l.refused++; time.Now().After(end) {
			return err
		}
	}
}

// waitRequests waits for n more requests to complete.
func (l *steadyLoad) waitRequests(n uint64) {
	l.t.Helper()
	from := l.done.Load()
	test.Eventually(l.t, fmt.Sprint(n, " requests"), func() bool {
		select {
		case err := <-l.ended:
			l.ended <- err
			l.t.Fatalf("the load has ended: %v", err)
		default:
		}
		return l.done.Load() >= from+n
	})
}

// finish ends the load and checks every block.
func (l *steadyLoad) finish() {
	l.t.Helper()
	l.stop.Store(true)
	test.Must(l.t, <-l.ended)
	l.ended <- nil
	p := make([]byte, 1<<20)
	for b := uint64(0); b < l.blocks; b += uint64(len(p) / 4096) {
		n := min(uint64(len(p)/4096), l.blocks-b)
		test.Must(l.t, test.Err(l.f.Driver(0).ReadAt(p[:n*4096], int64(b)*4096)))
		for i := range n {
			test.Must(l.t, checkBlock(p[i*4096:(i+1)*4096], b+i, l.versions[b+i]))
		}
	}
}
