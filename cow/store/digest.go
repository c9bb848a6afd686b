package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"cowblk/cow/vfs"
)

// digestChunk is the unit of an image's chunk digest, in bytes. Part of the format.
const digestChunk = 64 << 10

// chunkDigest is the SHA-256 by which an image of holes is known in a time that follows its data: of the image's size as
// 64 bits, little-endian, and for each chunk of digestChunk bytes that is not all zeros, in ascending order, of its
// number as 64 bits and the SHA-256 of its bytes. Where holes lie makes no difference.
type chunkDigest struct{ sum hash.Hash }

func newChunkDigest(size int64) *chunkDigest {
	d := &chunkDigest{sum: sha256.New()}
	d.number(uint64(size))
	return d
}

func (d *chunkDigest) number(n uint64) {
	var le [8]byte
	binary.LittleEndian.PutUint64(le[:], n)
	d.sum.Write(le[:])
}

// add takes bytes from off on, which begins a chunk, as they come in ascending order; only the last call may end within
// a chunk.
func (d *chunkDigest) add(off int64, p []byte) {
	for ; len(p) > 0; off, p = off+digestChunk, p[min(digestChunk, len(p)):] {
		chunk := p[:min(digestChunk, len(p))]
		if isZero(chunk) {
			continue
		}
		d.number(uint64(off / digestChunk))
		s := sha256.Sum256(chunk)
		d.sum.Write(s[:])
	}
}

func (d *chunkDigest) text() string { return hex.EncodeToString(d.sum.Sum(nil)) }

var zeroChunk = make([]byte, chunkSize)

// isZero reports whether p, at most chunkSize bytes, is all zeros.
func isZero(p []byte) bool { return bytes.Equal(p, zeroChunk[:len(p)]) }

// extents finds data in what is copied or hashed: a vfs.File or a source.
type extents interface {
	// next returns the first range [start, end) at or after off that may hold anything but zeros; io.EOF if none.
	next(ctx context.Context, off int64) (start, end int64, err error)
	ReadAt(p []byte, off int64) (int, error)
}

// fileExtents are those of a file.
type fileExtents struct{ vfs.File }

func (f fileExtents) next(_ context.Context, off int64) (start, end int64, err error) {
	return f.NextData(off)
}

// eachChunk calls do with each chunk of chunkSize bytes of the first size bytes that may hold anything but zeros, in
// ascending order: its offset, and its bytes, which do must not keep. progress is told how far it has come.
func eachChunk(ctx context.Context, in extents, size int64, progress func(done int64), do func(off int64, p []byte) error) error {
	buf := make([]byte, chunkSize)
	start, end, reported := int64(0), int64(0), int64(0) // of the data range at or after off; of what progress knows
	for off := int64(0); off < size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if off >= end {
			if start, end, err = in.next(ctx, off); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return err
			}
		}
		if start >= size {
			break
		}
		off = max(off, start/chunkSize*chunkSize)
		p := buf[:min(size-off, chunkSize)]
		clear(p)
		for pos := off; pos < off+int64(len(p)); pos = end {
			if pos >= end {
				if start, end, err = in.next(ctx, pos); errors.Is(err, io.EOF) {
					start, end = size, size
				} else if err != nil {
					return err
				}
			}
			from, to := max(pos, start), min(end, off+int64(len(p)))
			if from >= to {
				break
			}
			if _, err := in.ReadAt(p[from-off:to-off], from); errors.Is(err, io.EOF) {
				return fmt.Errorf("offset %d: %w", from, io.ErrUnexpectedEOF)
			} else if err != nil {
				return err
			}
		}
		if err := do(off, p); err != nil {
			return err
		}
		reported = off + int64(len(p))
		progress(reported)
	}
	if reported < size {
		progress(size)
	}
	return nil
}

// hashChunks is the chunk digest of the first size bytes of a file. check, if not nil, sees each chunk that may hold
// data.
func hashChunks(ctx context.Context, f vfs.File, size int64, progress func(done int64), check func(off int64, p []byte) error) (string, error) {
	// A file that has become shorter would look like one with a hole at its end.
	if now, err := f.Size(); err != nil {
		return "", err
	} else if now < size {
		return "", fmt.Errorf("%s: %w", f.Name(), io.ErrUnexpectedEOF)
	}
	d := newChunkDigest(size)
	err := eachChunk(ctx, fileExtents{f}, size, progress, func(off int64, p []byte) error {
		if check != nil {
			if err := check(off, p); err != nil {
				return err
			}
		}
		d.add(off, p)
		return nil
	})
	return d.text(), err
}
