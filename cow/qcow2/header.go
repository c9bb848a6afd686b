package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"cowblk/cow/finding"
)

// Magic is the first four bytes of an image.
const Magic = "QFI\xfb"

// Limits of a header, as in QEMU.
const (
	minClusterBits     = 9
	maxClusterBits     = 21
	minExtendedBits    = 14       // clusters with subclusters
	maxL1Size          = 32 << 20 // bytes
	maxSize            = 1 << 60  // bytes of a disk
	maxName            = 1023     // bytes of a backing file's name
	lengthV2, lengthV3 = 72, 104  // bytes of a header without extensions
	entrySize          = 8        // bytes of a table's entry
	maxExtensions      = 64
	maxRefcountOrder   = 6
	maxRefcountTable   = 8 << 20 // bytes
	maxSnapshots       = 65536
)

// Incompatible feature bits (header, offset 72).
const (
	featureDirty = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtendedL2
	featuresKnown = 1<<iota - 1
)

// Header extensions.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionDataFile      = 0x44415441
)

// Header is the header of an image.
type Header struct {
	Version     uint32
	ClusterBits uint
	Size        int64 // bytes of the disk
	// Backing is the backing file's name in the image; empty: none.
	Backing string
	// BackingFormat is the backing file's driver in the image ("raw", "qcow2"); empty: none.
	BackingFormat string
	// DataFile is the name of an external data file; such an image cannot be opened.
	DataFile string

	features uint64
	crypt    uint32
	zstd     bool
	l1Count  uint32
	l1Offset uint64
}

func (h *Header) extendedL2() bool { return h.features&featureExtendedL2 != 0 }

// ReadHeader decodes and checks the header of an image in a file of size bytes. If the image's
// content cannot be read (ErrCorrupt, ErrDirty, ErrEncrypted, ErrDataFile, ErrUnsupported) it also
// returns the header, as far as it was read.
func ReadHeader(ra io.ReaderAt, size int64) (*Header, error) {
	p := make([]byte, lengthV3+1)
	n, err := ra.ReadAt(p, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("header: %w", err)
	}
	be := binary.BigEndian
	if n < len(Magic) || string(p[:len(Magic)]) != Magic {
		return nil, finding.New(ErrFormat, "", "magic", fmt.Sprintf("%q", Magic),
			fmt.Sprintf("%q", p[:min(n, len(Magic))]), "")
	}
	truncated := finding.New(ErrTruncated, "", "header",
		"at least 72 bytes, 104 from version 3 on", fmt.Sprintf("a file of %d", n), "")
	if n < lengthV2 {
		return nil, truncated
	}
	h := &Header{
		Version: be.Uint32(p[4:]), ClusterBits: uint(be.Uint32(p[20:])), crypt: be.Uint32(p[32:]),
		l1Count: be.Uint32(p[36:]), l1Offset: be.Uint64(p[40:]),
	}
	length := uint32(lengthV2)
	switch h.Version {
	case 2:
	case 3:
		if n < lengthV3 {
			return nil, truncated
		}
		h.features, length = be.Uint64(p[72:]), be.Uint32(p[100:])
		h.zstd = length > lengthV3 && n > lengthV3 && p[lengthV3] != 0
	default:
		return nil, finding.New(ErrUnsupported, "", "version", "2 or 3", h.Version, "")
	}
	if err := h.check(be.Uint64(p[24:]), length); err != nil {
		return nil, err
	}
	order := uint32(4) // version 2: 16 bits
	if h.Version > 2 {
		order = be.Uint32(p[96:])
	}
	if err := h.checkRest(be.Uint64(p[48:]), be.Uint32(p[56:]), order, be.Uint32(p[60:]),
		be.Uint64(p[64:])); err != nil {
		return nil, err
	}
	h.Size = int64(be.Uint64(p[24:]))
	if err := h.readNames(ra, size, length, be.Uint64(p[8:]), be.Uint32(p[16:])); err != nil {
		return nil, err
	}
	return h, h.readable()
}

// check tests the fields that determine how much is read, and from where.
func (h *Header) check(size uint64, length uint32) error {
	if h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits {
		return damaged("cluster size", "2^9 to 2^21 bytes", fmt.Sprintf("2^%d", h.ClusterBits))
	}
	if h.extendedL2() && h.ClusterBits < minExtendedBits {
		return damaged("cluster size of an image with subclusters", "at least 2^14 bytes",
			fmt.Sprintf("2^%d", h.ClusterBits))
	}
	if h.Version > 2 && (length < lengthV3 || length%8 != 0 || length > 1<<h.ClusterBits) {
		return damaged("length of the header", "a multiple of 8 from 104 to the cluster size",
			fmt.Sprint(length))
	}
	if size > maxSize {
		return damaged("size of the disk", "at most 2^60 bytes", fmt.Sprint(size))
	}
	if h.l1Count > maxL1Size/entrySize || uint64(h.l1Count)<<h.l1Bits() < size {
		need := (size + 1<<h.l1Bits() - 1) >> h.l1Bits()
		return damaged("L1 table", fmt.Sprintf("at least %d entries, at most %d", need,
			maxL1Size/entrySize), fmt.Sprint(h.l1Count))
	}
	if h.l1Count > 0 && (h.l1Offset&(1<<h.ClusterBits-1) != 0 || h.l1Offset == 0 ||
		h.l1Offset > maxSize) {
		return damaged("offset of the L1 table", "a multiple of the cluster size",
			fmt.Sprint(h.l1Offset))
	}
	return nil
}

// checkRest tests the fields of refcounts and internal snapshots, which are not used here, as QEMU
// does when it opens an image: a header with an error there is damaged, and other fields may be
// too.
func (h *Header) checkRest(refcounts uint64, refcountClusters, order, snapshots uint32,
	snapshotTable uint64) error {
	cluster := uint64(1) << h.ClusterBits
	switch {
	case order > maxRefcountOrder:
		return damaged("width of a refcount", "at most 2^6 bits", fmt.Sprintf("2^%d", order))
	case refcountClusters == 0 || uint64(refcountClusters)<<h.ClusterBits > maxRefcountTable:
		return damaged("refcount table", fmt.Sprintf("1 to %d clusters",
			max(1, maxRefcountTable>>h.ClusterBits)), fmt.Sprint(refcountClusters))
	case refcounts%cluster != 0 || refcounts > maxSize:
		return damaged("offset of the refcount table", "a multiple of the cluster size",
			fmt.Sprint(refcounts))
	case snapshots > maxSnapshots:
		return damaged("internal snapshots", fmt.Sprintf("at most %d", maxSnapshots),
			fmt.Sprint(snapshots))
	case snapshots > 0 && (snapshotTable%cluster != 0 || snapshotTable > maxSize):
		return damaged("offset of the snapshot table", "a multiple of the cluster size",
			fmt.Sprint(snapshotTable))
	}
	return nil
}

// l2Bits returns log2 of the number of clusters that an L2 table describes, l1Bits log2 of their
// bytes.
func (h *Header) l2Bits() uint {
	if h.extendedL2() {
		return h.ClusterBits - 4
	}
	return h.ClusterBits - 3
}

func (h *Header) l1Bits() uint { return h.ClusterBits + h.l2Bits() }

// readNames reads the names of other files. Extensions end at the backing file's name or the end of
// the first cluster.
func (h *Header) readNames(ra io.ReaderAt, size int64, length uint32, nameAt uint64,
	nameLen uint32) error {
	cluster := uint64(1) << h.ClusterBits
	end := cluster
	if nameAt != 0 {
		if nameLen > maxName || nameAt > cluster || uint64(nameLen) > cluster-nameAt {
			return damaged("name of the backing file",
				"at most 1,023 bytes within the first cluster", fmt.Sprintf("%d bytes at offset %d",
					nameLen, nameAt))
		}
		name := make([]byte, nameLen)
		if err := readFull(ra, size, name, nameAt, "name of the backing file"); err != nil {
			return err
		}
		h.Backing = string(name)
		end = nameAt
	}
	at := uint64(length)
	for range maxExtensions {
		if at+8 > end || at+8 > uint64(size) {
			return nil
		}
		var head [8]byte
		if err := readFull(ra, size, head[:], at, "header extension"); err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(head[:]), uint64(binary.BigEndian.Uint32(head[4:]))
		at += 8
		if kind == extensionEnd {
			return nil
		}
		if n > end-at {
			return damaged("header extension", "one that ends within the header's cluster",
				fmt.Sprintf("%d bytes at offset %d", n, at))
		}
		if kind == extensionBackingFormat || kind == extensionDataFile {
			if n > maxName {
				return damaged("name in a header extension", "at most 1,023 bytes", fmt.Sprint(n))
			}
			text := make([]byte, n)
			if err := readFull(ra, size, text, at, "header extension"); err != nil {
				return err
			}
			if kind == extensionDataFile {
				h.DataFile = string(text)
			} else {
				h.BackingFormat = string(text)
			}
		}
		at += (n + 7) &^ 7
	}
	return damaged("header extensions", fmt.Sprintf("at most %d", maxExtensions), "more")
}

// readable returns the reason why the content cannot be read although the header is valid; nil: it
// can.
func (h *Header) readable() error {
	switch {
	case h.features&featureCorrupt != 0:
		return finding.New(ErrCorrupt, "", "incompatible features", "an intact image",
			"the mark of a corrupt image", "")
	case h.crypt != 0:
		return finding.New(ErrEncrypted, "", "encryption", "none", cryptName(h.crypt), "")
	case h.features&featureDataFile != 0:
		return finding.New(ErrDataFile, "", "external data file", "none",
			fmt.Sprintf("%q", h.DataFile), "")
	case h.features&^featuresKnown != 0:
		return finding.New(ErrUnsupported, "", "incompatible features", "bits 0 to 4 only",
			fmt.Sprintf("%#x", h.features), "")
	case h.zstd != (h.features&featureCompression != 0):
		return damaged("compression type", "the feature bit 3 with a type other than 0",
			fmt.Sprintf("features %#x", h.features))
	case h.zstd:
		return finding.New(ErrUnsupported, "", "compression", "zlib", "another type, such as zstd",
			"")
	case h.features&featureDirty != 0:
		return finding.New(ErrDirty, "", "incompatible features",
			"an image that was closed in order", "the mark of a dirty image", "")
	case strings.ContainsRune(h.Backing, 0):
		return damaged("name of the backing file", "one without zero bytes",
			fmt.Sprintf("%q", h.Backing))
	}
	return nil
}

func cryptName(method uint32) string {
	switch method {
	case 1:
		return "AES"
	case 2:
		return "LUKS"
	}
	return fmt.Sprintf("method %d", method)
}

// readFull fills p from off; the end of the file, at size bytes, is an ErrTruncated.
func readFull(ra io.ReaderAt, size int64, p []byte, off uint64, what string) error {
	n, err := 0, io.EOF
	if off < uint64(size) {
		n, err = ra.ReadAt(p, int64(off))
	}
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return finding.New(ErrTruncated, "", what,
			fmt.Sprintf("%d bytes at offset %d of the file", len(p), off),
			fmt.Sprintf("a file of %d bytes", size), "")
	}
	return fmt.Errorf("%s at offset %d: %w", what, off, err)
}
