package cow

import (
	"fmt"
	"io"

	"cowblk/eventfd"
)

// syncChannel is a channel that waits for each of its requests, for callers without a queue of
// their own (NBD, tools, tests). The disk reuses idle ones.
type syncChannel struct {
	ch   *Channel
	req  Request
	data [1][]byte
	out  []*Request
}

func (d *Disk) getSyncChannel() (*syncChannel, error) {
	d.mu.Lock()
	if n := len(d.idleSync); n > 0 {
		s := d.idleSync[n-1]
		d.idleSync = d.idleSync[:n-1]
		d.mu.Unlock()
		return s, nil
	}
	d.mu.Unlock()
	ch, err := d.NewChannel()
	if err != nil {
		return nil, err
	}
	return &syncChannel{ch: ch, out: make([]*Request, 0, 1)}, nil
}

func (d *Disk) putSyncChannel(s *syncChannel) {
	s.req.Data, s.data[0] = nil, nil
	d.mu.Lock()
	d.idleSync = append(d.idleSync, s)
	d.mu.Unlock()
}

// run performs s.req and waits for its completion.
func (s *syncChannel) run() error {
	s.ch.Submit(&s.req)
	for {
		s.out = s.ch.Completed(s.out[:0])
		if len(s.out) == 1 {
			return s.req.Err
		}
		if err := eventfd.Wait(s.ch.FD()); err != nil {
			return fmt.Errorf("wait for a flush: %w", err)
		}
	}
}

func (d *Disk) doSync(op Op, p []byte, off int64) error {
	s, err := d.getSyncChannel()
	if err != nil {
		return err
	}
	defer d.putSyncChannel(s)
	s.data[0] = p
	s.req = Request{Op: op, Offset: off, Length: int64(len(p)), Data: s.data[:]}
	return s.run()
}

// ReadAt reads the disk as io.ReaderAt does, at any byte: io.EOF if p reaches beyond the end.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	var end error
	if off >= 0 && int64(len(p)) > d.size-off {
		if off >= d.size {
			return 0, io.EOF
		}
		p, end = p[:d.size-off], io.EOF
	}
	if err := d.doSync(OpRead, p, off); err != nil {
		return 0, err
	}
	return len(p), end
}

// WriteAt writes all of p, at any byte. After an error the content of the range is undefined. The
// write is durable after Flush.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.doSync(OpWrite, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush makes every write that has completed durable.
func (d *Disk) Flush() error { return d.doSync(OpFlush, nil, 0) }
