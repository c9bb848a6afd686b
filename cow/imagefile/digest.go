package imagefile

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

// digestChunk is the chunk size of an image's digest, in bytes. It is part of the format.
const digestChunk = 64 << 10

// chunkDigest is a SHA-256 that can be computed without reading holes. Its input is the image's
// size as a 64-bit little-endian number, then for each chunk of digestChunk bytes that is not all
// zeros, in ascending order, the chunk's number as 64 bits and the SHA-256 of its bytes. The digest
// does not depend on the position of holes.
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

// add adds bytes from off on, the start of a chunk. Offsets must ascend; only the last call may end
// within a chunk.
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

// extents enumerates the data of a vfs.File or a source.
type extents interface {
	// next returns the first range [start, end) at or after off that may be nonzero; io.EOF if
	// none.
	next(ctx context.Context, off int64) (start, end int64, err error)
	ReadAt(p []byte, off int64) (int, error)
}

// fileExtents are the extents of a file.
type fileExtents struct{ vfs.File }

func (f fileExtents) next(_ context.Context, off int64) (start, end int64, err error) {
	return f.NextData(off)
}

// eachChunk calls do for each chunk of chunkSize bytes within the first size bytes that may be
// nonzero, in ascending order. do must not keep the bytes. progress receives the number of bytes
// done.
func eachChunk(ctx context.Context, in extents, size int64, progress func(done int64),
	do func(off int64, p []byte) error) error {
	buf := make([]byte, chunkSize)
	// start, end: the data range at or after off
	start, end, reported := int64(0), int64(0), int64(0)
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

// Digest returns the chunk digest of the first size bytes of a file. progress receives the number
// of bytes done.
func Digest(ctx context.Context, f vfs.File, size int64, progress func(done int64)) (string,
	error) {
	return hashChunks(ctx, f, size, progress, func(int64, []byte) error { return nil })
}

// hashChunks is Digest that calls check for each chunk that may hold data.
func hashChunks(ctx context.Context, f vfs.File, size int64, progress func(done int64),
	check func(off int64, p []byte) error) (string, error) {
	// A truncated file would have the digest of a file with a hole at its end.
	if now, err := f.Size(); err != nil {
		return "", err
	} else if now < size {
		return "", fmt.Errorf("%s: %w", f.Name(), io.ErrUnexpectedEOF)
	}
	d := newChunkDigest(size)
	err := eachChunk(ctx, fileExtents{f}, size, progress, func(off int64, p []byte) error {
		d.add(off, p)
		return check(off, p)
	})
	return d.text(), err
}

// SHA256 returns the SHA-256 of the first size bytes of a file, with zeros for holes, which it does
// not read, in hexadecimal.
func SHA256(ctx context.Context, f vfs.File, size int64, progress func(done int64)) (string,
	error) {
	sum, at := sha256.New(), int64(0)
	zerosTo := func(end int64) {
		for ; at < end && ctx.Err() == nil; at += min(end-at, chunkSize) {
			sum.Write(zeroChunk[:min(end-at, chunkSize)])
		}
	}
	err := eachChunk(ctx, fileExtents{f}, size, progress, func(off int64, p []byte) error {
		zerosTo(off)
		sum.Write(p)
		at = off + int64(len(p))
		return nil
	})
	if err != nil {
		return "", err
	}
	zerosTo(size)
	return hex.EncodeToString(sum.Sum(nil)), ctx.Err()
}
