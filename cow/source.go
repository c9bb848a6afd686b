package cow

import (
	"errors"
	"os"
	"sync/atomic"

	"cowblk/cow/layer"
	"cowblk/cow/pagecache"
	"cowblk/cow/vfs"
)

// maxMapped bounds the address space of one disk's mappings, in bytes. Files beyond it, counted
// from the base up, are read with system calls: a process has 128 TiB for all its disks and guests.
const maxMapped = 1 << 40

// source is where the blocks of one owner are.
type source struct {
	file  vfs.File // nil: empty, reads as zeros
	start int64    // byte of file of the disk's byte 0
	limit int64    // bytes of the disk that it can hold; zeros beyond

	mapping   *pagecache.Mapping // nil: none
	checksums *layer.Checksums   // of a sealed layer's data; nil: none
	mapped    *atomic.Int64      // mapping counts there
	direct    vfs.File           // file, if the source has opened it itself; else nil
}

// sources makes the sources of one disk.
type sources struct {
	fs     vfs.FS
	direct bool          // O_DIRECT
	mapped *atomic.Int64 // bytes of address space in use
}

// open makes the source of an open file. With direct I/O it opens the file again for the guest's
// data; headers, maps and syncs use f. Without, it maps the file.
func (k *sources) open(f vfs.File, name string, start, limit int64, writable bool) (source, error) {
	s := source{file: f, start: start, limit: limit}
	if k.direct {
		flag := os.O_RDONLY
		if writable {
			flag = os.O_RDWR
		}
		d, err := k.fs.OpenFile(name, flag|vfs.Direct, 0)
		if err != nil {
			return source{}, err
		}
		s.file, s.direct = d, d
		return s, nil
	}
	if k.mapped.Add(start+limit) > maxMapped {
		k.mapped.Add(-start - limit)
		return s, nil
	}
	m, err := f.Map(start+limit, writable)
	if err != nil {
		k.mapped.Add(-start - limit)
		return s, nil // reads work without
	}
	s.mapping, s.mapped = m, k.mapped
	return s, nil
}

func (k *sources) openLayer(l *layer.Layer) (source, error) {
	checksums, err := l.Checksums()
	if err != nil {
		return source{}, err
	}
	s, err := k.open(l.Data(), l.Paths().Data, l.DataOffset(), l.Header().Size, l.Writable())
	s.checksums = checksums
	return s, err
}

// close closes what the source itself has opened. No request is on it any more.
func (s *source) close() error {
	var errs []error
	if s.mapping != nil {
		errs = append(errs, s.mapping.Close())
		s.mapped.Add(-s.start - s.limit)
	}
	if s.direct != nil {
		errs = append(errs, s.direct.Close())
	}
	return errors.Join(errs...)
}
