package cow

import (
	"fmt"
	"io"
)

// modify serves a write, discard or write-zeroes; its r.FUA is the caller's
// business.
func (c *Channel) modify(r *Request) error {
	d := c.disk
	if d.ReadOnly() {
		return ErrReadOnly
	}
	if err := d.failure(); err != nil {
		return err
	}
	if r.Op == OpWrite {
		if err := d.checkBuffers(r); err != nil {
			return err
		}
		c.cur.set(r.Data)
		v := c.pinWrite()
		defer c.endWrite(r)
		return c.writeRuns(r, v, r.Offset, r.Length, false)
	}
	for _, g := range r.Ranges {
		if err := d.checkRange(r.Op, g.Offset, g.Length); err != nil {
			return err
		}
	}
	if c.async {
		return errWouldWait // file systems take their time to punch a hole
	}
	v := c.pinWrite()
	defer c.endWrite(r)
	for _, g := range r.Ranges {
		if err := c.zeroRange(v, g, r.Op == OpWriteZeroes); err != nil {
			return err
		}
	}
	return nil
}

// writeRuns writes n bytes of r from the cursor to the disk at pos, run by run.
// claimed: the guard is held over all of them, and nothing may be postponed.
func (c *Channel) writeRuns(r *Request, v *view, pos, n int64, claimed bool) error {
	d := c.disk
	for n > 0 {
		block, blocks := d.block(pos), d.touched(pos, n)
		owner, run := d.index.Lookup(block, blocks)
		var m int64
		var err error
		switch {
		case owner == v.head:
			m = min(n, d.endOf(pos, run)-pos)
			if s := &v.sources[v.head]; c.async && s.direct != nil && !claimed {
				err = c.submitAsync(r, v, s, pos, m, true)
			} else {
				err = c.overwrite(v, pos, m)
			}
		case owner > v.head:
			// Superseded: see doc.go, "A write finds a newer owner".
			m = min(n, d.endOf(pos, run)-pos)
			c.cur.advance(m)
		default:
			run += d.runBelowHead(v, block+run, blocks-run)
			m = min(n, d.endOf(pos, run)-pos)
			if claimed {
				err = c.writeNewBlocks(v, pos, m)
			} else {
				err = c.firstWrite(r, v, pos, m)
			}
		}
		if err != nil {
			return err
		}
		pos += m
		n -= m
	}
	return nil
}

// overwrite writes n bytes to blocks that the head owns: the hit path, a
// positional write and nothing else.
func (c *Channel) overwrite(v *view, pos, n int64) error {
	return c.writeHead(v, nil, n, nil, pos)
}

// runBelowHead counts the blocks from block on, at most limit, that an older layer
// than the head, or nobody, owns.
func (d *Disk) runBelowHead(v *view, block, limit uint64) (run uint64) {
	for run < limit {
		owner, n := d.index.Lookup(block+run, limit-run)
		if owner >= v.head {
			break
		}
		run += n
	}
	return run
}

// maxWrite is the most that one call writes into the page cache, in bytes, and
// what its pieces are aligned to in the file. A file system with large folios
// (ext4, xfs) caches a write in folios as large as it is, and a later write of
// 4 KiB then pays for every block of its folio: measured on ext4 of Linux 6.18,
// 19,000 random overwrites a second where the file had been written 1 MiB at a
// time, 135,000 at 64 KiB, 220,000 at 16 KiB. The first writes of a sequential
// stream get slower, from some 3.6 to 2.5 GB/s at 32 KiB.
const maxWrite = 32 << 10

// writeHead writes before, n bytes from the cursor, and after, one behind the
// other, to the head at disk byte pos, in as few calls as possible.
func (c *Channel) writeHead(v *view, before []byte, n int64, after []byte, pos int64) error {
	s := &v.sources[v.head]
	for len(before) > 0 || n > 0 || len(after) > 0 {
		iov := c.iov
		if len(before) > 0 {
			iov = appendIovec(iov, before)
		}
		most := n
		if s.direct == nil {
			off := s.start + pos + int64(len(before))
			most = min(n, maxWrite-off&(maxWrite-1))
		}
		iov, covered := c.cur.iovecs(iov, most)
		if covered == n && len(after) > 0 && len(iov) < cap(iov) {
			iov = appendIovec(iov, after)
		}
		put, err := s.file.Pwritev(iov, s.start+pos)
		if err == nil && put == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("write at byte %d of the disk: %w", pos, err)
		}
		pos += int64(put)
		k := min(put, len(before))
		before, put = before[k:], put-k
		m := min(int64(put), n)
		c.cur.advance(m)
		n -= m
		after = after[put-int(m):]
	}
	return nil
}
