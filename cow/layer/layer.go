package layer

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"cowblk/cow/vfs"
)

// Paths are the files of a layer. Map and data may be on block devices.
type Paths struct {
	Map  string
	Data string
	// Checksums is where the checksums of the data are, or shall be, if not behind the
	// map: a file of their own, which need not exist, nor its directory. For maps
	// that are devices, or not ours to make longer.
	Checksums string
	// DataOffset is where block 0 lies in Data, in bytes: a multiple of 512.
	DataOffset int64
}

// Layer is one open layer. Header, Data, Bitmap, Source, SyncData and Err may be called
// by anybody; WriteMap, SyncMap, Seal and Close are for one caller at a time.
type Layer struct {
	fs       vfs.FS
	paths    Paths
	mapf     vfs.File
	write    bool             // opened for writing, and not sealed since
	sector   [SectorSize]byte // the header as it is in the file
	broken   atomic.Bool      // a sync failed: the files' state is unknown
	syncLock chan struct{}    // full: a sync is under way

	unclean   bool       // it had not been closed in order when it was opened
	shared    *sharedMap // the head's, nil: none; fixed once it is open, see adopt
	recovered uint64     // see Unflushed
	dropped   error
	mu        sync.RWMutex // guards what follows; never held during I/O
	header    Header
	data      vfs.File
	bitmap    *Bitmap        // nil when sealed
	table     *checksumTable // the checksums of a sealed layer's data; nil: none

	formerData vfs.File // data as it was open before Seal; views may still read it

	ranges []*vfs.RangeLock // on map and data: see lockRanges
}

func newLayer(fsys vfs.FS, p Paths, write bool) *Layer {
	return &Layer{fs: fsys, paths: p, write: write, syncLock: make(chan struct{}, 1)}
}

// Paths are the paths that the layer was opened with.
func (l *Layer) Paths() Paths { return l.paths }

// Header returns the header as it is in the file.
func (l *Layer) Header() Header {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.header
}

// Unclean reports whether the layer, a head, had not been closed in order when it was
// opened: its files may hold what its last process has written and never synced.
func (l *Layer) Unclean() bool { return l.unclean }

// Data is the data file. After Seal it is another one, opened read-only; the
// former stays usable for reads until Close.
func (l *Layer) Data() vfs.File {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.data
}

// DataOffset is where block 0 lies in the data file, in bytes.
func (l *Layer) DataOffset() int64 { return l.paths.DataOffset }

// Bitmap is the map of an unsealed layer in memory, and nil for a sealed one.
func (l *Layer) Bitmap() *Bitmap {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.bitmap
}

// Writable reports whether the layer was opened for writing and has not been
// sealed since.
func (l *Layer) Writable() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.write
}

// WasHead reports whether the layer was opened for writing and has been sealed
// since: whoever did that has it replaced by one that is opened for reading.
func (l *Layer) WasHead() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.formerData != nil
}

// Err is nil, or ErrSyncFailed once a sync has failed. From then on nothing of
// this layer is reported durable again: the kernel may have dropped what it
// could not write, so a later sync that succeeds would prove nothing.
func (l *Layer) Err() error {
	if l.broken.Load() {
		return fmt.Errorf("%s: %w", l.paths.Map, ErrSyncFailed)
	}
	return nil
}

// writable is Err for operations that only a writable layer has.
func (l *Layer) writable() error {
	if !l.Writable() {
		return fmt.Errorf("%s: %w or opened read-only", l.paths.Map, ErrSealed)
	}
	return l.Err()
}

// SyncData makes the data written so far durable. A failure is sticky: see
// Err.
func (l *Layer) SyncData() error {
	if err := l.writable(); err != nil {
		return err
	}
	return l.sync(l.Data())
}

// SyncMap makes the map pages written so far durable. A failure is sticky.
func (l *Layer) SyncMap() error {
	if err := l.writable(); err != nil {
		return err
	}
	return l.sync(l.mapf)
}

// sync makes a file of the layer durable, while nobody else does. Of two syncs at once
// that meet the same error of write-back, the kernel tells one (Linux: errseq_t); the other
// succeeds, and must not be believed before the first has said what it was told.
func (l *Layer) sync(f vfs.File) error {
	l.syncLock <- struct{}{}
	defer func() { <-l.syncLock }()
	if err := l.Err(); err != nil {
		return err
	}
	if err := f.Datasync(); err != nil {
		l.broken.Store(true)
		if l.shared != nil {
			// What the kernel has dropped must not be taken for written.
			l.shared.invalidate()
		}
		return err
	}
	return nil
}

// maxPagesPerWrite is the number of map pages one write may carry.
const maxPagesPerWrite = 256

// WriteMap writes pages that TakeDirty returned, adjacent ones together. Only
// call it when the data of their blocks is durable. On failure all of them are
// dirty again, so that a later round (after room was made, say) repeats them.
func (l *Layer) WriteMap(pages []DirtyPage) error {
	if err := l.writable(); err != nil {
		return err
	}
	l.beginMapChange()
	iov := make([]vfs.Iovec, 0, min(len(pages), maxPagesPerWrite))
	for i := 0; i < len(pages); {
		first := pages[i].Page
		iov = iov[:0]
		for i < len(pages) && len(iov) < maxPagesPerWrite && pages[i].Page == first+uint64(len(iov)) {
			littleEndian(pages[i].Words[:])
			raw := wordBytes(pages[i].Words[:])
			v := vfs.Iovec{Base: &raw[0]}
			v.SetLen(len(raw))
			iov = append(iov, v)
			i++
		}
		if err := writeAll(l.mapf, iov, MapOffset+int64(first)*MapPageSize); err != nil {
			l.Bitmap().MarkDirty(pages)
			return err
		}
	}
	l.endMapChange()
	return nil
}

// writeAll writes all of iov, which it uses up.
func writeAll(f vfs.File, iov []vfs.Iovec, off int64) error {
	for len(iov) > 0 {
		n, err := f.Pwritev(iov, off)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("write %s at offset %d: no progress", f.Name(), off)
		}
		off += int64(n)
		for n > 0 {
			if have := int(iov[0].Len); n < have {
				advance(&iov[0], n)
				break
			} else {
				n -= have
				iov = iov[1:]
			}
		}
	}
	return nil
}

// writeHeader changes the header with one write of its one sector, which a
// power cut leaves old or new, and makes it durable.
func (l *Layer) writeHeader(h Header) error {
	sector := l.sector
	h.encode(&sector)
	l.beginMapChange()
	if _, err := l.mapf.WriteAt(sector[:], 0); err != nil {
		return err
	}
	if err := l.sync(l.mapf); err != nil {
		return err
	}
	l.endMapChange()
	l.sector = sector
	l.mu.Lock()
	l.header = h
	l.mu.Unlock()
	return nil
}

// Flush makes the data written so far durable, then the bits of completed writes.
// It returns buf, grown if need be, for the next call. What it was to write stays
// dirty after an error, which a repeated call can get over unless Err says that a
// sync has failed.
func (l *Layer) Flush(buf []DirtyPage) ([]DirtyPage, error) {
	b := l.Bitmap()
	b.beginFlush()
	pages := b.TakeDirty(buf[:0])
	if err := l.SyncData(); err != nil {
		return pages, err
	}
	if len(pages) == 0 {
		return pages, nil
	}
	if err := l.WriteMap(pages); err != nil {
		return pages, err
	}
	if err := l.SyncMap(); err != nil {
		return pages, err
	}
	b.flushed(pages)
	return pages, nil
}

// Close closes the files. A head is flushed before and marked clean; after an
// earlier failed sync it is left as it is, and Close returns ErrSyncFailed.
// Nothing may use the layer any more.
func (l *Layer) Close() error {
	return errors.Join(l.Finish(), l.Abandon())
}

// Finish is what Close does to a head before the files are closed. It may be repeated after an error that Err does not
// know, when room was made, say. To a layer that is only read it does nothing.
func (l *Layer) Finish() error {
	if !l.Writable() {
		return nil
	}
	if err := l.Err(); err != nil {
		return err
	}
	if _, err := l.Flush(nil); err != nil {
		return err
	}
	h := l.Header()
	h.Clean, h.Owned, h.MapCRC = true, l.Bitmap().Count(), l.Bitmap().checksum()
	h.clearShared()
	h.Features.ClearOnOpen |= featureHeadCRC
	if err := l.writeHeader(h); err != nil {
		return err
	}
	l.removeShared()
	return nil
}

// AbandonNew is Abandon of a new head that is not needed after all.
func (l *Layer) AbandonNew() error {
	l.removeShared()
	return l.Abandon()
}

// Abandon closes the files and writes nothing: what was not flushed may be
// lost, and a head is not marked clean. It is how a failed disk is let go.
func (l *Layer) Abandon() error {
	var errs []error
	if l.shared != nil {
		// The mapping stays for as long as somebody has the bitmap.
		errs = append(errs, l.shared.file.Close())
		l.shared = nil
	}
	if l.table != nil && l.table.file != l.mapf {
		errs = append(errs, l.table.file.Close())
	}
	for _, r := range l.ranges {
		errs = append(errs, r.Close())
	}
	l.ranges = nil
	for _, f := range []vfs.File{l.data, l.formerData, l.mapf} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	l.data, l.formerData = nil, nil
	return errors.Join(errs...)
}
