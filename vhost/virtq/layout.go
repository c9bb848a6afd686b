package virtq

import (
	"errors"
	"fmt"

	"cowblk/vhost/guest"
	"cowblk/vhost/virtq/internal/word"
)

// Feature bits of the ring (virtio 1.2, 6).
const (
	FeatureIndirectDesc uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx     uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
)

// MaxNum is the largest size of a split ring, in descriptors (virtio 1.2, 2.7).
const MaxNum = 32768

// MaxChain is the maximum number of descriptors of one chain, direct and indirect together. The
// specification's limit is the size of the ring; drivers with indirect tables exceed it on small
// rings, and other devices accept 1,024. It also bounds the memory that a hostile driver can make a
// slot keep.
const MaxChain = 1024

// Ring flags of drivers and devices without VIRTIO_F_RING_EVENT_IDX.
const (
	AvailNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT, written by the driver
	UsedNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY, written by the device
)

// Sizes and offsets, in bytes, of the parts of a split ring.
const (
	DescSize     = 16 // le64 address, le32 length, le16 flags, le16 next
	UsedElemSize = 8  // le32 head, le32 written
	RingFlags    = 0  // flags, in both rings
	RingIdx      = 2  // idx, in both rings
	RingEntries  = 4  // first element, in both rings
)

// The rings' sizes round up to 4 bytes because their last field, the event index, is reached
// through a 32-bit word.

// DescTableSize returns the bytes of the descriptor table of num descriptors.
func DescTableSize(num uint16) int { return DescSize * int(num) }

// AvailSize returns the bytes of the available ring, rounded up to 4.
func AvailSize(num uint16) int { return (UsedEventOffset(num) + 2 + 3) &^ 3 }

// UsedSize returns the bytes of the used ring, rounded up to 4.
func UsedSize(num uint16) int { return (AvailEventOffset(num) + 2 + 3) &^ 3 }

// UsedEventOffset returns the offset of used_event in the available ring, in bytes.
func UsedEventOffset(num uint16) int { return RingEntries + 2*int(num) }

// AvailEventOffset returns the offset of avail_event in the used ring, in bytes.
func AvailEventOffset(num uint16) int { return RingEntries + UsedElemSize*int(num) }

// Required alignment, in bytes. The specification (2.7) requires 2 for the available ring; this
// package needs 4, because its index is accessed through a 32-bit word. In the usual layouts the
// ring follows the descriptor table and has 16.
const (
	descAlign  = 16
	availAlign = 4
	usedAlign  = 4
)

// ErrRing reports a ring with an invalid size, address or alignment.
var ErrRing = errors.New("bad ring")

// checkNum accepts the sizes of a split ring: powers of two up to MaxNum.
func checkNum(num uint16) error {
	if num == 0 || num > MaxNum || num&(num-1) != 0 {
		return fmt.Errorf("ring size: expected a power of two from 1 to %d, found %d: %w", MaxNum,
			num, ErrRing)
	}
	return nil
}

// MapSplit finds the three parts of a split ring of num descriptors from their front-end virtual
// addresses (SET_VRING_ADDR). The slices alias guest memory and are valid while the caller holds a
// reference to t. Errors wrap ErrRing.
func MapSplit(t *guest.Table, num uint16, descUVA, availUVA,
	usedUVA uint64) (desc, avail, used []byte, err error) {
	if err := checkNum(num); err != nil {
		return nil, nil, nil, err
	}
	part := func(name string, uva uint64, size int, align uintptr) ([]byte, error) {
		b, err := t.User(uva, uint64(size))
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", name, err, ErrRing)
		}
		return b, checkPart(name, b, size, align)
	}
	if desc, err = part("descriptor table", descUVA, DescTableSize(num), descAlign); err != nil {
		return nil, nil, nil, err
	}
	if avail, err = part("available ring", availUVA, AvailSize(num), availAlign); err != nil {
		return nil, nil, nil, err
	}
	if used, err = part("used ring", usedUVA, UsedSize(num), usedAlign); err != nil {
		return nil, nil, nil, err
	}
	return desc, avail, used, nil
}

// checkPart checks the size and alignment of one mapped part of a ring.
func checkPart(name string, b []byte, size int, align uintptr) error {
	if len(b) < size {
		return fmt.Errorf("%s: expected %d bytes, found %d: %w", name, size, len(b), ErrRing)
	}
	if !word.Aligned(b, align) {
		return fmt.Errorf("%s: address is not a multiple of %d: %w", name, align, ErrRing)
	}
	return nil
}
