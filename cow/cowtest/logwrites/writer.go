// Package logwrites writes logs of block writes in the format of the kernel's
// dm-log-writes target (drivers/md/dm-log-writes.c), version 1, so that tools made
// for that can replay what cowblk did to a file, up to any point.
//
// A log is a sequence of sectors. The first is the super block: magic, version,
// number of entries, sector size. Each entry then takes one sector for its header
// (sector written to, number of sectors, flags, length of private data) with the
// text of a mark behind it, followed by the data of a write. All numbers are
// little endian. A discard has no data; a replay zeroes the range.
package logwrites

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The format's numbers.
const (
	Magic      = 0x6a736677736872
	Version    = 1
	SectorSize = 512

	entrySize = 32 // bytes of an entry's header
)

// Flags of an entry.
const (
	FlagFlush   = 1 << 0 // what was written before is durable
	FlagFUA     = 1 << 1
	FlagDiscard = 1 << 2
	FlagMark    = 1 << 3
)

// Writer makes one log. Close completes it.
type Writer struct {
	w       io.WriterAt
	off     int64  // where the next entry goes
	entries uint64 // so far
}

// NewWriter begins a log at the start of w, which need not be empty.
func NewWriter(w io.WriterAt) (*Writer, error) {
	l := &Writer{w: w, off: SectorSize}
	return l, l.super()
}

func (l *Writer) super() error {
	var s [SectorSize]byte
	le := binary.LittleEndian
	le.PutUint64(s[0:], Magic)
	le.PutUint64(s[8:], Version)
	le.PutUint64(s[16:], l.entries)
	le.PutUint32(s[24:], SectorSize)
	_, err := l.w.WriteAt(s[:], 0)
	return err
}

// Write logs p, whole sectors, written at byte off.
func (l *Writer) Write(off int64, p []byte) error {
	if off%SectorSize != 0 || len(p)%SectorSize != 0 {
		return fmt.Errorf("log a write of %d bytes at %d: not whole sectors", len(p), off)
	}
	return l.entry(off/SectorSize, int64(len(p))/SectorSize, 0, nil, p)
}

// Discard logs that n bytes from off, whole sectors, read as zeros.
func (l *Writer) Discard(off, n int64) error {
	if off%SectorSize != 0 || n%SectorSize != 0 {
		return fmt.Errorf("log a discard of %d bytes at %d: not whole sectors", n, off)
	}
	return l.entry(off/SectorSize, n/SectorSize, FlagDiscard, nil, nil)
}

// Flush logs that everything before is durable.
func (l *Writer) Flush() error { return l.entry(0, 0, FlagFlush, nil, nil) }

// Mark logs a text that tools can stop at; what does not fit into the entry's
// sector is left out.
func (l *Writer) Mark(text string) error {
	const most = SectorSize - entrySize - 1 // tools expect a terminating zero
	return l.entry(0, 0, FlagMark, []byte(text[:min(len(text), most)]), nil)
}

func (l *Writer) entry(sector, sectors int64, flags uint64, private, data []byte) error {
	var head [SectorSize]byte
	le := binary.LittleEndian
	le.PutUint64(head[0:], uint64(sector))
	le.PutUint64(head[8:], uint64(sectors))
	le.PutUint64(head[16:], flags)
	le.PutUint64(head[24:], uint64(len(private)))
	copy(head[entrySize:], private)
	if _, err := l.w.WriteAt(head[:], l.off); err != nil {
		return err
	}
	l.off += SectorSize
	if _, err := l.w.WriteAt(data, l.off); err != nil {
		return err
	}
	l.off += int64(len(data))
	l.entries++
	return nil
}

// Close writes the number of entries, which makes the log whole.
func (l *Writer) Close() error { return l.super() }
