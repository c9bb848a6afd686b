package layer

import (
	"os"
	"time"
)

// Seal ends the layer's life as a head: everything is made durable, the map's checksum and the
// state go into the header with one durable write, the lock becomes shared and Data a read-only
// file. The caller guarantees that no write to the layer is in flight and none follows. A crash at
// any point leaves a valid head or a valid sealed layer. After an error Seal may be called again,
// unless a sync failed.
func (l *Layer) Seal(now time.Time) (err error) {
	defer addContext(&err, "seal layer")
	if err := l.writable(); err != nil {
		return err
	}
	if _, err := l.Flush(nil); err != nil {
		return err
	}
	b := l.Bitmap()
	h := l.Header()
	h.State, h.Clean, h.SealedAt = Sealed, true, instant(nanoseconds(now))
	h.Owned, h.MapCRC = b.Count(), b.checksum()
	h.clearShared()
	h.Features.MayIgnore &^= featureDataChecksums // AddChecksums sets it

	// Opened before the header says sealed: a failure then changes nothing.
	data, err := l.fs.OpenFile(l.paths.Data, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := l.writeHeader(h); err != nil {
		data.Close()
		return err
	}
	l.mu.Lock()
	l.write, l.bitmap = false, nil
	l.formerData, l.data = l.data, data
	l.mu.Unlock()
	// The layer is sealed, so errors from here on are ignored. Linux converts an exclusive lock
	// without releasing it, so no other process can refuse that. If it fails nevertheless, the
	// layer stays exclusively ours until it is closed.
	l.removeShared()
	_ = l.shareRanges() // before the lock that a reader takes first
	_ = l.mapf.Lock(false)
	return nil
}

// checksum returns the map checksum of FORMAT.md.
func (b *Bitmap) checksum() uint32 {
	var crc uint32
	var words [wordsPerPage]uint64
	for page, ok := b.nextTouched(0); ok; page, ok = b.nextTouched(page + 1) {
		b.read(words[:], page*wordsPerPage)
		if !allZero(words[:]) {
			crc = addPageCRC(crc, page, words[:])
		}
	}
	return crc
}
