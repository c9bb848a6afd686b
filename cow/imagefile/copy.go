package imagefile

import (
	"context"
	"fmt"
	"hash/crc32"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// chunkSize is the size of one read when content is copied or hashed, in bytes.
const chunkSize = 1 << 20

// holeSize is the unit in which zeros become holes, in bytes: one block of the file system.
const holeSize = 4096

// writtenChunks holds the checksums of the written nonzero chunks in ascending order.
type writtenChunks struct {
	path   string
	chunks []writtenChunk
}

type writtenChunk struct {
	number int64  // offset / chunkSize
	sum    uint32 // CRC-32C, which has a processor instruction
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

func (w *writtenChunks) differs(number int64) error {
	return finding.New(nil, w.path, fmt.Sprintf("content read back at offset %d", number*chunkSize),
		"what was written", "something else",
		"check the machine's memory and the disk under the store")
}

// compare compares a chunk that was read back at off with its checksum, and removes the checksum.
func (w *writtenChunks) compare(off int64, p []byte) error {
	number := off / chunkSize
	if len(w.chunks) > 0 && w.chunks[0].number < number {
		return w.differs(w.chunks[0].number)
	}
	if isZero(p) {
		return nil
	}
	if len(w.chunks) == 0 || w.chunks[0] != (writtenChunk{number, checksum(p)}) {
		return w.differs(number)
	}
	w.chunks = w.chunks[1:]
	return nil
}

// end reports a chunk that was written and not read back.
func (w *writtenChunks) end() error {
	if len(w.chunks) > 0 {
		return w.differs(w.chunks[0].number)
	}
	return nil
}

// CopyTo durably copies the content to the empty file out, with holes for zeros, reads it back and
// compares it. It returns the chunk digest. copied and verified receive the number of bytes done.
// The source must not have changed meanwhile.
func (src *Source) CopyTo(ctx context.Context, out vfs.File, copied,
	verified func(done int64)) (digest string, err error) {
	if err := out.Truncate(src.Size); err != nil {
		return "", err
	}
	w := &writtenChunks{path: out.Name()}
	err = eachChunk(ctx, src, src.Size, copied, func(off int64, p []byte) error {
		if isZero(p) {
			return nil
		}
		w.chunks = append(w.chunks, writtenChunk{off / chunkSize, checksum(p)})
		return writeSparse(out, p, off)
	})
	if err == nil {
		err = out.Datasync()
	}
	if err == nil {
		err = src.unchanged()
	}
	if err == nil {
		digest, err = hashChunks(ctx, out, src.Size, verified, w.compare)
	}
	if err == nil {
		err = w.end()
	}
	return digest, err
}

// writeSparse writes the runs of nonzero blocks of p.
func writeSparse(out vfs.File, p []byte, off int64) error {
	zero := func(i int) bool { return isZero(p[i:min(i+holeSize, len(p))]) }
	for i := 0; i < len(p); {
		if zero(i) {
			i += holeSize
			continue
		}
		j := i + holeSize
		for j < len(p) && !zero(j) {
			j += holeSize
		}
		j = min(j, len(p))
		if _, err := out.WriteAt(p[i:j], off+int64(i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}
