package cow

import (
	"fmt"

	"cowblk/cow/index"
)

// read serves r: one positional read per run of blocks with one owner, straight
// into the caller's buffers.
func (c *Channel) read(r *Request) error {
	if err := c.disk.checkBuffers(r); err != nil {
		return err
	}
	c.cur.set(r.Data)
	v := c.pinRead()
	defer c.unpinRead()

	d := c.disk
	for pos, left := r.Offset, r.Length; left > 0; {
		owner, run := d.index.Lookup(d.block(pos), d.touched(pos, left))
		if owner > v.top {
			// The block was written on a newer view. What this view could
			// still read is older than what has been acknowledged.
			v = c.pinRead()
			continue
		}
		n := min(left, d.endOf(pos, run)-pos)
		if err := c.readSource(&v.sources[owner], pos, n); err != nil {
			return err
		}
		pos += n
		left -= n
	}
	return nil
}

// readSource reads n bytes of the disk from pos out of one source to where the
// cursor stands. What lies beyond the source's limit reads as zeros (a base
// shorter than the disk, a layer made before the disk grew).
//
// The limits were checked when the stack was opened, so an end of file within
// one means that somebody cut the file since: an error, not zeros.
func (c *Channel) readSource(s *source, pos, n int64) error {
	inside := max(0, min(n, s.limit-pos))
	for left := inside; left > 0; {
		iov, _ := c.cur.iovecs(c.iov, left)
		got, err := s.file.Preadv(iov, s.start+pos)
		if err != nil {
			return fmt.Errorf("read %d bytes at byte %d of the disk: %w", left, pos, err)
		}
		if got == 0 {
			return fmt.Errorf("read %d bytes at byte %d of %s: %w", left, s.start+pos, s.file.Name(), ErrTruncated)
		}
		c.cur.advance(int64(got))
		pos += int64(got)
		left -= int64(got)
	}
	if n > inside {
		return c.cur.zero(n - inside)
	}
	return nil
}

// fetch reads one owner's content into p, for a copy-up. It leaves the cursor
// alone: that one stands in the caller's buffers.
func (c *Channel) fetch(v *view, owner index.Owner, p []byte, pos int64) error {
	s := &v.sources[owner]
	inside := int(max(0, min(int64(len(p)), s.limit-pos)))
	for done := 0; done < inside; {
		iov := appendIovec(c.iov, p[done:inside])
		got, err := s.file.Preadv(iov, s.start+pos+int64(done))
		if err != nil {
			return fmt.Errorf("copy-up from byte %d of the disk: %w", pos, err)
		}
		if got == 0 {
			return fmt.Errorf("copy-up from byte %d of %s: %w", s.start+pos, s.file.Name(), ErrTruncated)
		}
		done += got
	}
	clear(p[inside:])
	return nil
}
