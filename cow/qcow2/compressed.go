package qcow2

import (
	"compress/flate"
	"errors"
	"fmt"
	"io"

	"cowblk/cow/finding"
)

// compressedSector is the unit in which an L2 entry counts compressed bytes.
const compressedSector = 512

// inflate decompresses the cluster of a compressed L2 entry into img.inflated. at is its position
// on the disk, for messages.
func (img *Image) inflate(desc uint64, at int64) error {
	if img.inflatedOf == desc {
		return nil
	}
	bits := 62 - (img.ClusterBits - 8) // of the host offset; the number of further sectors follows
	off := desc & (1<<bits - 1)
	sectors := desc & (flagCompressed - 1) >> bits
	n := int64((sectors+1)*compressedSector - off%compressedSector)
	what := fmt.Sprintf("compressed cluster at offset %d of the disk", at)
	if off >= uint64(img.size) {
		return finding.New(ErrTruncated, "", what,
			fmt.Sprintf("data at offset %d of the file", off),
			fmt.Sprintf("a file of %d bytes", img.size), "")
	}
	// The last sector may extend beyond the end of the file: the stream knows its own end.
	src := &trackedReader{r: io.NewSectionReader(img.ra, int64(off), min(n, img.size-int64(off)))}
	if img.inflated == nil {
		img.inflated = make([]byte, 1<<img.ClusterBits)
	}
	img.inflatedOf = 0
	got, err := io.ReadFull(flate.NewReader(src), img.inflated)
	switch {
	case err == nil:
		img.inflatedOf = desc
		return nil
	case src.err != nil:
		return fmt.Errorf("%s: %w", what, src.err)
	case int64(off)+n > img.size && errors.Is(err, io.ErrUnexpectedEOF):
		return finding.New(ErrTruncated, "", what,
			fmt.Sprintf("%d bytes at offset %d of the file", n, off),
			fmt.Sprintf("a file of %d bytes", img.size), "")
	}
	return damaged(what, fmt.Sprintf("%d bytes", len(img.inflated)), fmt.Sprintf("%d, then: %v",
		got, err))
}

// trackedReader keeps an error of the file, in contrast to one of the compressed data.
type trackedReader struct {
	r   io.Reader
	err error
}

func (t *trackedReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}
