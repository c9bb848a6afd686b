package cow

import (
	"errors"
	"os"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// maxMapped bounds the address space that one disk's mappings take, in bytes.
// What is beyond it, counted from the base up, is read with system calls: a
// process has 128 TiB for all its disks and guests.
const maxMapped = 1 << 40

// source is where the blocks of one owner are.
type source struct {
	file  vfs.File // nil: nothing, reads as zeros
	start int64    // byte of file at which the disk's byte 0 lies
	limit int64    // bytes of the disk it can hold; beyond that it reads as zeros

	mapping   *vfs.Mapping     // of file, if it never changes; nil: none
	checksums *layer.Checksums // of a sealed layer's data; nil: none
	direct    vfs.File         // file, if the source has opened it for itself; else nil
}

// sources makes the sources of one disk.
type sources struct {
	fs     vfs.FS
	direct bool  // past the page cache
	mapped int64 // bytes of address space taken so far
}

// open makes the source of a file that is open already. With direct I/O the file
// is opened once more for the guest's data; headers, maps and syncs stay with the
// one that is given. Without it, a file that does not change is mapped.
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
	if writable || k.mapped+start+limit > maxMapped {
		return s, nil
	}
	m, err := f.Map(start + limit)
	if err != nil {
		return s, nil // reads do without
	}
	k.mapped += start + limit
	s.mapping = m
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

// markResident says that n bytes from off of the file have just been read. With sums nothing
// counts as seen before it has been compared: see verify.
func (s *source) markResident(off, n int64) {
	if s.mapping != nil && s.checksums == nil {
		s.mapping.MarkResident(off, n)
	}
}

// close releases what the source itself has opened. No request is on it any more.
func (s *source) close() error {
	var errs []error
	if s.mapping != nil {
		errs = append(errs, s.mapping.Close())
	}
	if s.direct != nil {
		errs = append(errs, s.direct.Close())
	}
	return errors.Join(errs...)
}
