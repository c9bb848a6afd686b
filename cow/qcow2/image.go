package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"cowblk/cow/finding"
)

// Kind says where bytes of the disk are.
type Kind int

const (
	// Unallocated bytes are those of the backing file, or zeros beyond its end or without one.
	Unallocated Kind = iota
	// Zero bytes are zeros, whatever the backing file has.
	Zero
	// Data bytes are in this image.
	Data
)

// l1Window is the part of the L1 table in memory, in bytes.
const l1Window = 64 << 10

// Image reads one image, for one goroutine at a time.
type Image struct {
	Header
	ra   io.ReaderAt
	size int64 // of the file, bytes

	l1     []byte // a window of the L1 table
	l1From uint64 // index of its first entry

	l2     []byte // the L2 table that was used last
	l2From uint64 // its offset in the file; 0: none

	inflated   []byte // the compressed cluster that was read last
	inflatedOf uint64 // its descriptor; 0: none

	holes extent
}

// Open opens the image in a file of size bytes. If ra has the method NextData of vfs.File,
// clusters at holes of the file are zeros that need no read. Errors: see ReadHeader.
func Open(ra io.ReaderAt, size int64) (*Image, error) {
	h, err := ReadHeader(ra, size)
	if err != nil {
		return nil, err
	}
	img := &Image{Header: *h, ra: ra, size: size}
	img.holes.file, _ = ra.(dataFinder)
	if end := h.l1Offset + uint64(h.l1Count)*entrySize; h.l1Count > 0 && end > uint64(size) {
		return nil, finding.New(ErrTruncated, "", "L1 table",
			fmt.Sprintf("%d bytes of the file", end), size, "")
	}
	return img, nil
}

// Bits of L1 and L2 entries.
const (
	offsetMask     = 0x00fffffffffffe00
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
)

// l1Entry returns the offset of the L2 table with an index; 0: none.
func (img *Image) l1Entry(index uint64) (uint64, error) {
	if index < img.l1From || index >= img.l1From+uint64(len(img.l1))/entrySize {
		from := index &^ (l1Window/entrySize - 1)
		p := make([]byte, min(l1Window, (uint64(img.l1Count)-from)*entrySize))
		if err := readFull(img.ra, img.size, p, img.l1Offset+from*entrySize,
			"L1 table"); err != nil {
			return 0, err
		}
		img.l1, img.l1From = p, from
	}
	off := binary.BigEndian.Uint64(img.l1[(index-img.l1From)*entrySize:]) & offsetMask
	if off&(1<<img.ClusterBits-1) != 0 {
		return 0, damaged(fmt.Sprintf("entry %d of the L1 table", index),
			"a multiple of the cluster size", fmt.Sprint(off))
	}
	return off, nil
}

// l2Table loads the L2 table at an offset into img.l2.
func (img *Image) l2Table(off uint64) error {
	if img.l2From == off {
		return nil
	}
	if img.l2 == nil {
		img.l2 = make([]byte, 1<<img.ClusterBits)
	}
	img.l2From = 0
	if err := readFull(img.ra, img.size, img.l2, off, "L2 table"); err != nil {
		return err
	}
	img.l2From = off
	return nil
}

// cluster is the entry of one cluster in the tables.
type cluster struct {
	desc        uint64 // the L2 entry
	alloc, zero uint32 // of each subcluster, with extended L2 entries
}

// at returns entry n of the L2 table in memory.
func (img *Image) at(n uint64) (c cluster) {
	if !img.extendedL2() {
		c.desc = binary.BigEndian.Uint64(img.l2[n*entrySize:])
		return c
	}
	p := img.l2[n*2*entrySize:]
	c.desc = binary.BigEndian.Uint64(p)
	c.zero, c.alloc = binary.BigEndian.Uint32(p[8:]), binary.BigEndian.Uint32(p[12:])
	return c
}

// Status returns the kind of the bytes of the disk from off on, and how many of them have it: at
// least one, and perhaps not all that do. 0 ≤ off < Size.
func (img *Image) Status(off int64) (Kind, int64, error) {
	index := uint64(off) >> img.l1Bits()
	l2, err := img.l1Entry(index)
	if err != nil {
		return 0, 0, err
	}
	if l2 == 0 {
		for index++; index < uint64(img.l1Count) && int64(index<<img.l1Bits()) < img.Size; index++ {
			if l2, err = img.l1Entry(index); err != nil || l2 != 0 {
				break
			}
		}
		return Unallocated, min(int64(index<<img.l1Bits()), img.Size) - off, err
	}
	if err := img.l2Table(l2); err != nil {
		return 0, 0, err
	}
	kind, n, err := img.clusterStatus(off)
	if err != nil {
		return 0, 0, err
	}
	// Clusters of the same kind in the same table.
	for end := off + n; end < img.Size && uint64(end)>>img.l1Bits() == index; end = off + n {
		k, more, err := img.clusterStatus(end)
		if err != nil || k != kind {
			break // the error occurs again when the caller comes there
		}
		n += more
	}
	return kind, min(n, img.Size-off), nil
}

// clusterStatus is Status within one cluster, whose L2 table is in memory.
func (img *Image) clusterStatus(off int64) (Kind, int64, error) {
	size := int64(1) << img.ClusterBits
	in := off & (size - 1)
	c, err := img.clusterAt(off)
	if err != nil {
		return 0, 0, err
	}
	switch {
	case c.desc&flagCompressed != 0:
		return Data, size - in, nil
	case img.extendedL2():
		kind, n := c.subclusters(in, size)
		return img.withoutHoles(kind, int64(c.desc&offsetMask)+in, n)
	case c.desc&flagZero != 0:
		return Zero, size - in, nil
	case c.desc&offsetMask != 0:
		return img.withoutHoles(Data, int64(c.desc&offsetMask)+in, size-in)
	}
	return Unallocated, size - in, nil
}

// clusterAt reads and checks the entry of the cluster with byte off. Its L2 table is in memory.
func (img *Image) clusterAt(off int64) (cluster, error) {
	number := uint64(off) >> img.ClusterBits
	c := img.at(number & (1<<img.l2Bits() - 1))
	if c.desc&flagCompressed != 0 {
		return c, nil
	}
	what := func() string { return fmt.Sprintf("L2 entry of the cluster at offset %d of the disk", off) }
	switch {
	case c.desc&offsetMask&(1<<img.ClusterBits-1) != 0:
		return c, damaged(what(), "a multiple of the cluster size", fmt.Sprint(c.desc&offsetMask))
	case img.Version == 2 && c.desc&flagZero != 0:
		return c, damaged(what(), "no zero flag in an image of version 2",
			fmt.Sprintf("%#x", c.desc))
	case img.extendedL2() && c.desc&flagZero != 0:
		return c, damaged(what(), "no zero flag beside subclusters", fmt.Sprintf("%#x", c.desc))
	case c.alloc&c.zero != 0:
		return c, damaged(what(), "subclusters that are allocated or zero", "both")
	case c.alloc != 0 && c.desc&offsetMask == 0:
		return c, damaged(what(), "an offset for the allocated subclusters", "none")
	}
	return c, nil
}

// subclusters is Status within a cluster of size bytes, from byte in of it on.
func (c cluster) subclusters(in, size int64) (Kind, int64) {
	const number = 32
	first := int(in / (size / number))
	kind, set := Unallocated, ^(c.alloc | c.zero)
	switch {
	case c.alloc>>first&1 != 0:
		kind, set = Data, c.alloc
	case c.zero>>first&1 != 0:
		kind, set = Zero, c.zero
	}
	run := min(bits.TrailingZeros32(^(set >> first)), number-first)
	return kind, int64(first+run)*(size/number) - in
}

// ReadAt fills p with bytes of the disk from off on. Status must have returned Data for all of
// them.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at < 0 || at >= img.Size {
			return done, io.EOF
		}
		l2, err := img.l1Entry(uint64(at) >> img.l1Bits())
		if err == nil && l2 == 0 {
			err = fmt.Errorf("offset %d of the disk is not in this image", at)
		}
		if err == nil {
			err = img.l2Table(l2)
		}
		if err != nil {
			return done, err
		}
		c, err := img.clusterAt(at)
		if err != nil {
			return done, err
		}
		size := int64(1) << img.ClusterBits
		in := at & (size - 1)
		part := p[done:min(len(p), done+int(size-in))]
		if c.desc&flagCompressed != 0 {
			if err := img.inflate(c.desc, at); err != nil {
				return done, err
			}
			copy(part, img.inflated[in:])
		} else if err := readFull(img.ra, img.size, part, c.desc&offsetMask+uint64(in),
			"data"); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}
