package reopen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/vhost/frontend"
)

// patience bounds every wait for a back-end. A disk of 64 TiB takes minutes.
const patience = 5 * time.Minute

// dialPause is the interval between a front-end's attempts to connect.
const dialPause = 200 * time.Microsecond

// writeDepth is the number of requests in flight while blocks are written.
const writeDepth = 32

// client is a guest with one queue.
type client struct {
	*frontend.Frontend
	socket string
}

// dial connects to a server as soon as it listens.
func dial(p *server) (*client, error) {
	c := &client{socket: p.socket}
	err := p.retry(func() (err error) {
		c.Frontend, err = frontend.Dial(p.socket, frontend.Options{QueueSize: 256,
			Slots: writeDepth, MaxTransfer: 64 << 10, Timeout: patience})
		return err
	})
	if err == nil { // virtio 1.2, 5.2.4: writeback
		err = c.SetConfig(32, []byte{1})
	}
	return c, err
}

// reconnect connects to another server, as QEMU does.
func (c *client) reconnect(p *server) error {
	return p.retry(func() error { return c.Reconnect(c.socket) })
}

// retry repeats connect until the server listens.
func (p *server) retry(connect func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(dialPause) {
		err := connect()
		absent := errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
		if !absent || time.Now().After(end) {
			return err
		}
		if unix.Kill(p.cmd.Process.Pid, 0) != nil || p.zombie() {
			return fmt.Errorf("the server ended before it listened: %w", p.explain(p.cmd.Wait()))
		}
	}
}

// zombie reports whether the server has ended but has not been waited for.
func (p *server) zombie() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT,
		nil)
	return err == nil && info.Signo != 0
}

// stamp fills p with the content of a block.
func stamp(p []byte, block int64) {
	for i := 0; i < len(p); i += 512 {
		binary.LittleEndian.PutUint64(p[i:], uint64(block)+1)
	}
}

// write writes each of blocks.
func (c *client) write(blocks []int64) error {
	d := c.Driver(0)
	next := 0
	submit := func(slot int) error {
		if next == len(blocks) {
			return nil
		}
		block := blocks[next]
		next++
		stamp(d.Buffer(slot)[:blockSize], block)
		return d.Submit(slot, frontend.OpWrite, block*blockSize, blockSize)
	}
	for slot := range writeDepth {
		if err := submit(slot); err != nil {
			return err
		}
	}
	done := make([]frontend.Completion, 0, writeDepth)
	for d.InFlight() > 0 {
		if err := d.Kick(); err != nil {
			return err
		}
		if err := d.Wait(); err != nil {
			return err
		}
		done = d.Poll(done[:0])
		for _, r := range done {
			if r.Status != frontend.StatusOK {
				return fmt.Errorf("a write completed with status %d", r.Status)
			}
			if err := submit(r.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// check reads one of blocks and compares it.
func (c *client) check(block int64) error {
	p, want := make([]byte, blockSize), make([]byte, 512)
	if _, err := c.Driver(0).ReadAt(p, block*blockSize); err != nil {
		return err
	}
	stamp(want, block)
	for i := 0; i < blockSize; i += 512 {
		if found := binary.LittleEndian.Uint64(p[i:]); found != uint64(block)+1 {
			return fmt.Errorf(
				"block %d: expected the written content, found %#x: lost when the process was killed", block, found)
		}
	}
	return nil
}

// checkSome checks a sample of blocks.
func (c *client) checkSome(blocks []int64) error {
	for range min(len(blocks), 512) {
		if err := c.check(blocks[rand.IntN(len(blocks))]); err != nil {
			return err
		}
	}
	return nil
}

// scattered returns n blocks of a disk, evenly spread and in random order.
func scattered(size int64, n int) []int64 {
	all := size / blockSize
	n = int(min(int64(n), all))
	step := all / int64(n)
	blocks := make([]int64, n)
	random := rand.New(rand.NewPCG(14, uint64(size)))
	for i, at := range random.Perm(n) {
		blocks[i] = int64(at)*step + random.Int64N(step)
	}
	return blocks
}

// contiguous returns n consecutive blocks from the middle of a disk, or all blocks if it has fewer.
func contiguous(size int64, n int) []int64 {
	all := size / blockSize
	n = int(min(int64(n), all))
	first := min(all/2, all-int64(n))
	blocks := make([]int64, n)
	for i := range blocks {
		blocks[i] = first + int64(i)
	}
	return blocks
}
