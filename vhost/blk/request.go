package blk

import "fmt"

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

// Range is one segment of a DISCARD or WRITE_ZEROES, inside the disk, never
// empty; sectors of 512 bytes.
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
