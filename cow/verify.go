package cow

import (
	"fmt"
	"runtime/debug"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// checksumBatch is the part of a checksum table that is read at once, in bytes: 1 MiB of data in
// blocks of 4 KiB.
const checksumBatch = 1 << 10

// verify compares n bytes of the disk from pos, which were just read from s into k, with the
// checksums that AddChecksums computed of them (FORMAT.md, "Data checksums").
//
// A unit that an asynchronous channel found in memory is compared the first time since the open;
// later that is one test of a bit. Only then is it resident in a mapping, and what a mapping copied
// at once needs no test at all. Data that may have come from the device is compared each time: data
// from the engine, data that a mapping took long to copy (maybeFaulted), and all data of a
// synchronous channel. It misses a page that was verified, was evicted, and came back because
// another process has read it, or the kernel has read ahead.
//
// The caller's buffers may be a guest's, which can write to them at any time: only a unit that
// matches is accepted there. Any other unit, and one that the request covers in part, is read again
// as a whole into our own memory. If that copy matches, the caller gets it.
func (c *Channel) verify(s *source, k cursor, pos, n int64, maybeFaulted bool) error {
	all := maybeFaulted || !c.async
	if all || !s.checksums.AllVerified(pos, n) {
		if err := c.verifyUnits(s, k, pos, n, all); err != nil {
			return err
		}
	}
	if c.async && s.mapping != nil {
		first, end := s.checksums.Covered(pos, n)
		s.mapping.MarkResidentInside(s.start+first, end-first)
	}
	return nil
}

// verifyUnits compares all units of the range (all), or those that have not been verified before.
func (c *Channel) verifyUnits(s *source, k cursor, pos, n int64, all bool) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer faulted(&err)
	checksums := s.checksums
	for n > 0 {
		unit := checksums.Unit(pos)
		p := c.checksums[:min(checksumBatch, 4*(checksums.Unit(pos+n-1)-unit+1))]
		if err := checksums.Load(p, c.iov, unit, !c.async); err == vfs.ErrWouldBlock {
			return errWouldWait
		} else if err != nil {
			return fmt.Errorf("verify %d bytes at byte %d of the disk: %w", n, pos, err)
		}
		for i := range len(p) / 4 {
			_, end := checksums.Bounds(unit)
			m := min(n, end-pos)
			if !all && checksums.Verified(unit) {
				k.advance(m)
			} else if err := c.verifyUnit(s, &k, unit, checksums.Sum(p, i), pos, m); err != nil {
				return err
			}
			pos, n, unit = pos+m, n-m, unit+1
		}
	}
	return nil
}

// verifyUnit compares one unit, of which n bytes at pos were read into k, and moves k behind them.
func (c *Channel) verifyUnit(s *source, k *cursor, unit uint64, want uint32, pos, n int64) error {
	start, end := s.checksums.Bounds(unit)
	dst := *k
	if n == end-start && k.checksum(n) == want {
		s.checksums.SetVerified(unit)
		return nil
	}
	*k = dst
	k.advance(n)
	p := c.unitBuf[:end-start]
	if err := c.readFull(s, p, start); err != nil {
		return err
	}
	if found := layer.DataChecksum(p); found != want {
		return fmt.Errorf("read %d bytes at byte %d of the disk: %w", n, pos,
			s.checksums.Fault(unit, want, found))
	}
	s.checksums.SetVerified(unit)
	dst.copyFrom(p[pos-start:][:n])
	return nil
}

// readFull reads all of p from a source, at byte pos of the disk, within the source's limit.
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
