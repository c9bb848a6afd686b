package layer

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"cowblk/cow/vfs"
)

// Paths are the files of a layer. Map and data may be block devices.
type Paths struct {
	Map  string
	Data string
	// Checksums, unless empty, is the file for the checksums of the data, instead of the place
	// behind the map. The file and its directory need not exist. It is for maps that are devices,
	// or that must not be made longer.
	Checksums string
	// DataOffset is the byte of Data at which block 0 lies: a multiple of 512.
	DataOffset int64
}

// Layer is one open layer. Header, Data, Bitmap, Source, SyncData and Err may be called
// concurrently; WriteMap, SyncMap, Seal and Close by one caller at a time.
type Layer struct {
	fs       vfs.FS
	paths    Paths
	mapf     vfs.File
	write    bool             // opened for writing, and not sealed since
	sector   [SectorSize]byte // the header as it is in the file
	broken   atomic.Value     // error of a sync that failed: the files' state is unknown
	syncLock chan struct{}    // capacity 1; full while a sync runs

	unclean   bool       // it was not closed in order before this open
	shared    *sharedMap // the head's; nil: none; fixed once open, see attachShared
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

// Paths returns the paths that the layer was opened with.
func (l *Layer) Paths() Paths { return l.paths }

// Header returns the header as it is in the file.
func (l *Layer) Header() Header {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.header
}

// Unclean reports whether the layer, a head, was not closed in order before this open: its files
// may hold writes of its last process that were never synced.
func (l *Layer) Unclean() bool { return l.unclean }

// Data returns the data file. After Seal it is another File, opened read-only; the former stays
// usable for reads until Close.
func (l *Layer) Data() vfs.File {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.data
}

// DataOffset returns the byte of the data file at which block 0 lies.
func (l *Layer) DataOffset() int64 { return l.paths.DataOffset }

// Bitmap returns the map of an unsealed layer in memory, and nil for a sealed one.
func (l *Layer) Bitmap() *Bitmap {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.bitmap
}

// Writable reports whether the layer was opened for writing and not sealed since.
func (l *Layer) Writable() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.write
}

// WasHead reports whether the layer was opened for writing and sealed since. It is to be replaced
// by one that is opened for reading.
func (l *Layer) WasHead() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.formerData != nil
}

// Err returns ErrSyncFailed with the cause once a sync has failed. From then on nothing of this
// layer is reported durable: the kernel may have dropped what it could not write, so the success of
// a later sync would prove nothing.
func (l *Layer) Err() error {
	err, _ := l.broken.Load().(error)
	return err
}

// writable is Err for operations that need a writable layer.
func (l *Layer) writable() error {
	if !l.Writable() {
		return fmt.Errorf("%s: %w or opened read-only", l.paths.Map, ErrSealed)
	}
	return l.Err()
}

// SyncData makes the data written so far durable. A failure is sticky: see Err.
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

// sync makes a file of the layer durable; one sync runs at a time. If two syncs at once meet the
// same write-back error, the kernel reports it to one of them (Linux: errseq_t). The other
// succeeds, and that success must not count before the first has returned.
func (l *Layer) sync(f vfs.File) error {
	l.syncLock <- struct{}{}
	defer func() { <-l.syncLock }()
	if err := l.Err(); err != nil {
		return err
	}
	if err := f.Datasync(); err != nil {
		// One concrete type: atomic.Value takes no other later.
		err = fmt.Errorf("%s: %w: %w", l.paths.Map, ErrSyncFailed, err)
		l.broken.CompareAndSwap(nil, err)
		if l.shared != nil && f != l.mapf {
			// Data that the kernel has dropped must not count as written. What it has dropped of
			// the map is in the shared map, and the next process writes the map again.
			l.shared.invalidate()
		}
		return err
	}
	return nil
}

// maxPagesPerWrite is the number of map pages in one write.
const maxPagesPerWrite = 256

// WriteMap writes pages that TakeDirty returned, adjacent pages together. The data of their blocks
// must be durable. On failure all of them are dirty again, so that a later round (once there is
// space, say) repeats them.
func (l *Layer) WriteMap(pages []DirtyPage) error {
	if err := l.writable(); err != nil {
		return err
	}
	l.beginMapChange()
	iov := make([]vfs.Iovec, 0, min(len(pages), maxPagesPerWrite))
	for i := 0; i < len(pages); {
		first := pages[i].Page
		iov = iov[:0]
		for i < len(pages) && len(iov) < maxPagesPerWrite && pages[i].Page == first+
			uint64(len(iov)) {
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

// writeAll writes all of iov and modifies it.
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

// writeHeader replaces the header durably with one write of its one sector, which a power cut
// leaves old or new.
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

// Flush makes the data written so far durable, then the bits of completed writes. It returns buf,
// possibly grown, for the next call. After an error the bits stay dirty, and Flush may be repeated
// unless Err says that a sync has failed.
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

// Close closes the files. A head is flushed first and marked clean; after an earlier failed sync it
// is left as it is, and Close returns ErrSyncFailed. Nothing may use the layer any more.
func (l *Layer) Close() error {
	return errors.Join(l.Finish(), l.Abandon())
}

// Finish flushes a head and marks it clean, as Close does before it closes the files. It may be
// repeated after an error that is not in Err, once there is space, say. It does nothing to a layer
// that is open for reading.
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

// AbandonNew is Abandon for a new head that is not used after all; it removes its shared map.
func (l *Layer) AbandonNew() error {
	l.removeShared()
	return l.Abandon()
}

// Abandon closes the files without a write: unflushed data may be lost, and a head is not marked
// clean. It is for layers of a failed disk.
func (l *Layer) Abandon() error {
	var errs []error
	if l.shared != nil {
		// The mapping lives as long as the bitmap is in use.
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
