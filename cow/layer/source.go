package layer

import (
	"io"

	"cowblk/cow/vfs"
)

// Source reads a layer's bitmap as 64-bit words, bit i of word w being block 64·w+i. It may be used
// concurrently, until the layer is closed.
type Source struct {
	words  uint64  // of the bitmap, whole pages
	bitmap *Bitmap // of an unsealed layer
	file   vfs.File
}

// Source returns the layer's bitmap for building an index: from memory if it is loaded, else from
// the map file.
func (l *Layer) Source() *Source {
	h := l.Header()
	return &Source{words: h.MapPages() * wordsPerPage, bitmap: l.Bitmap(), file: l.mapf}
}

// Words fills dst with the words from first on; words beyond the bitmap are zero.
func (s *Source) Words(dst []uint64, first uint64) error {
	if s.bitmap != nil {
		s.bitmap.read(dst, first)
		return nil
	}
	n := uint64(0)
	if first < s.words {
		n = min(uint64(len(dst)), s.words-first)
	}
	clear(dst[n:])
	if n == 0 {
		return nil
	}
	off := MapOffset + int64(first)*8
	if _, err := s.file.ReadAt(wordBytes(dst[:n]), off); err != nil {
		return readError(s.file, "map", off, int64(n)*8, err)
	}
	littleEndian(dst[:n])
	return nil
}

// Next returns the first range of words [start, end) at or after word that may hold a set bit, or
// io.EOF if all other words are zero.
func (s *Source) Next(word uint64) (start, end uint64, err error) {
	if word >= s.words {
		return 0, 0, io.EOF
	}
	if s.bitmap != nil {
		page, ok := s.bitmap.nextTouched(word / wordsPerPage)
		if !ok {
			return 0, 0, io.EOF
		}
		return max(word, page*wordsPerPage), (page + 1) * wordsPerPage, nil
	}
	from, to, err := s.file.NextData(MapOffset + int64(word)*8)
	if err != nil {
		return 0, 0, err
	}
	start = max(word, uint64(from-MapOffset)/8)
	end = min(s.words, (uint64(to-MapOffset)+7)/8)
	if start >= end {
		return 0, 0, io.EOF
	}
	return start, end, nil
}
