package blk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cowblk/vhost/virtq"
)

// Sizes in bytes (5.2.6): of le32 type, le32 reserved, le64 sector; and of struct
// virtio_blk_discard_write_zeroes.
const (
	headerSize  = 16
	segmentSize = 16
)

// segmentUnmap is the only flag of a segment.
const segmentUnmap = 1

// ErrMalformed reports a chain without room for a header or a status. It cannot be answered.
var ErrMalformed = errors.New("malformed request")

// Parser parses chains into requests. Each queue has its own; it is not for concurrent use.
type Parser struct {
	sectors     uint64
	readOnly    bool
	discard     rangeLimits
	writeZeroes rangeLimits
	id          [IDSize]byte
	raw         [headerSize]byte // private copy of the header or a segment
}

// rangeLimits bounds the content of a DISCARD or WRITE_ZEROES.
type rangeLimits struct {
	offered    bool
	maxSeg     uint64 // segments
	maxSectors uint64 // per segment
	flags      uint32 // known flags
}

// NewParser returns a parser for the device c, which has passed Check, and the features that the
// driver accepted. Only DISCARD and WRITE_ZEROES matter here: a FLUSH is executed even if it was
// not negotiated.
func NewParser(c *Config, features uint64) *Parser {
	features &= c.Features()
	p := &Parser{
		sectors:  c.Sectors,
		readOnly: c.ReadOnly,
		discard: rangeLimits{
			offered:    features&FeatureDiscard != 0,
			maxSeg:     uint64(max(c.MaxDiscardSeg, 1)),
			maxSectors: uint64(c.MaxDiscardSectors),
		},
		writeZeroes: rangeLimits{
			offered:    features&FeatureWriteZeroes != 0,
			maxSeg:     uint64(max(c.MaxWriteZeroesSeg, 1)),
			maxSectors: uint64(c.MaxWriteZeroesSectors),
			flags:      segmentUnmap,
		},
	}
	copy(p.id[:], c.ID)
	return p
}

// Parse reads the request in c into r. StatusPending means that the request is valid and must be
// executed; any other status is final and must be passed to Finish. An error, which wraps
// ErrMalformed, means that the chain cannot be answered.
//
// The slices of c are trimmed in place and shared with r.Data; c must be loaded again before it can
// be parsed again. Parse allocates only while r.Ranges grows, to at most the device's limit of
// segments.
func (p *Parser) Parse(c *virtq.Chain, r *Request) (Status, error) {
	*r = Request{Ranges: r.Ranges[:0]}
	readable, ok := p.copyHeader(c.Readable)
	if !ok {
		return StatusIOErr, fmt.Errorf("chain %d: %d readable bytes, a header takes %d: %w",
			c.Head, c.ReadLen, headerSize, ErrMalformed)
	}
	r.Type = binary.LittleEndian.Uint32(p.raw[0:])
	r.Sector = binary.LittleEndian.Uint64(p.raw[8:])
	readLen := c.ReadLen - headerSize

	writable, status := splitStatus(c.Writable)
	if status == nil {
		return StatusIOErr, fmt.Errorf("chain %d: no writable byte for the status: %w", c.Head,
			ErrMalformed)
	}
	r.status, r.statusAt = status, c.WriteLen-1

	switch r.Type {
	case TypeIn:
		return p.transfer(r, writable, r.statusAt), nil
	case TypeOut:
		if p.readOnly { // 5.2.6.2
			return StatusIOErr, nil
		}
		return p.transfer(r, readable, readLen), nil
	case TypeFlush:
		return StatusPending, nil
	case TypeGetID:
		return p.answerID(r, writable), nil
	case TypeDiscard:
		return p.ranges(r, readable, readLen, &p.discard), nil
	case TypeWriteZeroes:
		return p.ranges(r, readable, readLen, &p.writeZeroes), nil
	}
	return StatusUnsupp, nil
}

// transfer checks the range of a read or write of n bytes. With n = 0 the request is complete.
func (p *Parser) transfer(r *Request, data [][]byte, n uint64) Status {
	if n%SectorSize != 0 || !p.inside(r.Sector, n/SectorSize) {
		return StatusIOErr
	}
	if n == 0 {
		return StatusOK
	}
	r.Data, r.DataLen = data, n
	return StatusPending
}

// inside reports whether n sectors from sector are on the disk, without overflow.
func (p *Parser) inside(sector, n uint64) bool {
	return sector <= p.sectors && n <= p.sectors-sector
}

// answerID writes the identifier, padded with NULs to IDSize bytes.
func (p *Parser) answerID(r *Request, data [][]byte) Status {
	if r.statusAt < IDSize {
		return StatusIOErr
	}
	rest := p.id[:]
	for _, seg := range data {
		rest = rest[copy(seg, rest):]
	}
	r.answered = IDSize
	return StatusOK
}

// ranges reads the n bytes of segments of a DISCARD or WRITE_ZEROES. Unknown flags in any segment
// make the whole request unsupported, as 5.2.6.2 demands, so nothing of it is executed.
func (p *Parser) ranges(r *Request, data [][]byte, n uint64, lim *rangeLimits) Status {
	if !lim.offered {
		return StatusUnsupp
	}
	if n == 0 || n%segmentSize != 0 || n/segmentSize > lim.maxSeg {
		return StatusIOErr
	}
	verdict := StatusPending
	for range n / segmentSize {
		var ok bool
		if data, ok = p.copyHeader(data); !ok {
			return StatusIOErr // less data than ReadLen
		}
		sector := binary.LittleEndian.Uint64(p.raw[0:])
		sectors := uint64(binary.LittleEndian.Uint32(p.raw[8:]))
		flags := binary.LittleEndian.Uint32(p.raw[12:])
		switch {
		case flags&^lim.flags != 0:
			return StatusUnsupp
		case sectors > lim.maxSectors || !p.inside(sector, sectors):
			verdict = StatusIOErr
		case sectors > 0:
			r.Ranges = append(r.Ranges, Range{sector, sectors, flags&segmentUnmap != 0})
		}
	}
	if verdict == StatusPending && len(r.Ranges) == 0 {
		return StatusOK
	}
	return verdict
}

// copyHeader copies the first 16 bytes of segs to p.raw, and returns the remaining slices; segs is
// trimmed in place. ok is false if there are fewer bytes.
func (p *Parser) copyHeader(segs [][]byte) (rest [][]byte, ok bool) {
	for got := 0; ; segs = segs[1:] {
		if len(segs) == 0 {
			return nil, false
		}
		n := copy(p.raw[got:], segs[0])
		got += n
		if got == len(p.raw) {
			if segs[0] = segs[0][n:]; len(segs[0]) == 0 {
				segs = segs[1:]
			}
			return segs, true
		}
	}
}

// splitStatus cuts the last byte off segs, in place; status is nil if there is none.
func splitStatus(segs [][]byte) (data [][]byte, status []byte) {
	last := len(segs) - 1
	if last < 0 {
		return nil, nil
	}
	seg := segs[last]
	end := len(seg) - 1
	if end == 0 {
		return segs[:last], seg
	}
	segs[last] = seg[:end]
	return segs, seg[end:]
}

// Request types (5.2.6).
const (
	TypeIn          = 0  // VIRTIO_BLK_T_IN: read
	TypeOut         = 1  // VIRTIO_BLK_T_OUT: write
	TypeFlush       = 4  // VIRTIO_BLK_T_FLUSH
	TypeGetID       = 8  // VIRTIO_BLK_T_GET_ID
	TypeDiscard     = 11 // VIRTIO_BLK_T_DISCARD
	TypeWriteZeroes = 13 // VIRTIO_BLK_T_WRITE_ZEROES
)

// Status is the result of a request (5.2.6).
type Status uint8

const (
	StatusOK      Status = 0   // VIRTIO_BLK_S_OK
	StatusIOErr   Status = 1   // VIRTIO_BLK_S_IOERR
	StatusUnsupp  Status = 2   // VIRTIO_BLK_S_UNSUPP
	StatusPending Status = 255 // not decided yet; never sent to a driver
)

func (s Status) String() string {
	switch s {
	case StatusOK:
		return "OK"
	case StatusIOErr:
		return "IOERR"
	case StatusUnsupp:
		return "UNSUPP"
	case StatusPending:
		return "pending"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Range is one segment of a DISCARD or WRITE_ZEROES, inside the disk, never empty; sectors of 512
// bytes.
type Range struct {
	Sector, Sectors uint64
	Unmap           bool // WRITE_ZEROES: the blocks may be freed
}

// Request is one request of the driver. Data aliases guest memory and the arrays of the chain it
// was parsed from, which must both stay valid until Finish.
type Request struct {
	Type    uint32   // TypeIn, …
	Sector  uint64   // TypeIn and TypeOut: first sector, of 512 bytes
	Data    [][]byte // TypeIn: to fill; TypeOut: to write; no empty slices
	DataLen uint64   // bytes in Data, a multiple of 512
	Ranges  []Range  // TypeDiscard and TypeWriteZeroes; capacity kept between uses

	status   []byte // the status byte in guest memory
	statusAt uint64 // its offset in the device-writable part
	answered uint64 // bytes that Parse itself wrote at the start of that part
}

// Finish writes the status byte and returns the length for the used element: the bytes written to
// the device-writable part from its start without a gap (2.7.8.2, which allows less, never more). A
// failed read therefore claims none of its data.
//
// The byte is an ordinary store; publishing the used ring orders it.
func (r *Request) Finish(s Status) (written uint32) {
	if s == StatusPending {
		s = StatusIOErr
	}
	r.status[0] = byte(s)
	n := r.answered
	if s != StatusOK {
		n = 0
	} else if r.Type == TypeIn {
		n = r.DataLen
	}
	if n == r.statusAt {
		n++ // the status byte follows what was written
	}
	return uint32(n)
}
