package cow

import (
	"fmt"
	"runtime/debug"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// sumBytes is how much of a table of data sums is read at once, in bytes: 1 MiB of
// data in blocks of 4 KiB.
const sumBytes = 1 << 10

// verify compares n bytes of the disk from pos, which have just been read from s to
// where k stands, with the sums that were made of them when their layer was sealed
// (FORMAT.md, "Data sums").
//
// A unit that an asynchronous channel found in memory is compared the first time
// since the layer was opened; from then on that is one test of a bit. Only then does
// a mapping have it, and what that has had at once needs no test at all. What may
// have come from the device is compared each time: what its engine has read, what a
// mapping has taken long to copy (late), and everything on a synchronous channel.
// What escapes is a page that was found right, was dropped from memory, and came
// back because another process has read it, or the kernel has read ahead.
//
// The caller's buffers may be a guest's, which can write to them meanwhile. So only
// a unit that is right is believed there. Of others, and of those that the request
// covers in part, the whole is read anew to memory of our own; if that is right, it
// is what the caller gets.
func (c *Channel) verify(s *source, k cursor, pos, n int64, late bool) error {
	all := late || !c.async
	if all || !s.sums.AllRight(pos, n) {
		if err := c.compare(s, k, pos, n, all); err != nil {
			return err
		}
	}
	if c.async && s.mapping != nil {
		first, end := s.sums.Covered(pos, n)
		s.mapping.SeenWhole(s.start+first, end-first)
	}
	return nil
}

// compare is verify of what is to be compared: of all units, or of those that have
// not been found right before.
func (c *Channel) compare(s *source, k cursor, pos, n int64, all bool) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer faulted(&err)
	sums := s.sums
	for n > 0 {
		unit := sums.Unit(pos)
		p := c.sums[:min(sumBytes, 4*(sums.Unit(pos+n-1)-unit+1))]
		if err := sums.Load(p, c.iov, unit, !c.async); err == vfs.ErrWouldBlock {
			return errWouldWait
		} else if err != nil {
			return fmt.Errorf("verify %d bytes at byte %d of the disk: %w", n, pos, err)
		}
		for i := range len(p) / 4 {
			_, end := sums.Bounds(unit)
			m := min(n, end-pos)
			if !all && sums.Right(unit) {
				k.advance(m)
			} else if err := c.compareUnit(s, &k, unit, sums.Sum(p, i), pos, m); err != nil {
				return err
			}
			pos, n, unit = pos+m, n-m, unit+1
		}
	}
	return nil
}

// compareUnit compares one unit, of which n bytes at pos have been read to where k
// stands, and moves k behind them.
func (c *Channel) compareUnit(s *source, k *cursor, unit uint64, want uint32, pos, n int64) error {
	start, end := s.sums.Bounds(unit)
	landed := *k
	if n == end-start && k.sum(n) == want {
		s.sums.SetRight(unit)
		return nil
	}
	*k = landed
	k.advance(n)
	p := c.unit[:end-start]
	if err := c.readFull(s, p, start); err != nil {
		return err
	}
	if found := layer.DataSum(p); found != want {
		return fmt.Errorf("read %d bytes at byte %d of the disk: %w", n, pos, s.sums.Fault(unit, want, found))
	}
	s.sums.SetRight(unit)
	landed.put(p[pos-start:][:n])
	return nil
}

// readFull reads all of p from a source, at byte pos of the disk, and within its
// limit.
func (c *Channel) readFull(s *source, p []byte, pos int64) error {
	for done := 0; done < len(p); {
		got, err := c.preadv(s, appendIovec(c.iov, p[done:]), s.start+pos+int64(done))
		if err == vfs.ErrWouldBlock {
			return errWouldWait
		}
		if err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("byte %d of %s: %w", s.start+pos, s.file.Name(), ErrTruncated)
		}
		done += got
	}
	return nil
}
