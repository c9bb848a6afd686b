package layer

import (
	"errors"
	"fmt"
	"os"

	"cowblk/cow/vfs"
)

// AddChecksums gives a sealed layer the checksums of its data, if it has none: it reads
// all of them, writes the table behind the map, or to Paths.Sums if there is such a
// path, and then says so in a header. A crash leaves the layer without or with them,
// and when two processes do it at a time they write the same. Sums returns them from
// then on. ErrInUse while another process does it.
//
// pause is called after each piece of 64 KiB at most with the bytes of the data file
// that are behind it, and ends the work with its error; nil: nobody is to be
// spared. ErrNoRoom where the table would lie behind the map, and that is a device,
// or a file that goes on behind its end with something else.
func (l *Layer) AddChecksums(pause func(off int64) error) error {
	if err := l.addChecksums(pause); err != nil {
		return fmt.Errorf("add checksums of the data: %w", err)
	}
	return nil
}

func (l *Layer) addChecksums(pause func(off int64) error) error {
	h := l.Header()
	if h.State != Sealed {
		return fmt.Errorf("%s: %w", l.paths.Map, ErrNotSealed)
	}
	if l.HasChecksums() {
		return nil
	}
	// Not the file that guests read: the advice and the lock are this work's own.
	data, err := l.openAgain(l.paths.Data, os.O_RDONLY, l.Data())
	if err != nil {
		return err
	}
	defer data.Close()
	// Reading ahead would do many pieces' work at once, as much as 8 MiB, while
	// guests wait for the processor. Where advice is refused, so be it.
	_ = data.AdviseRandom()
	// A fleet's processes share their layers, and begin together after an upgrade. One
	// is enough; where there are no such locks they may all do it.
	if err := data.Lock(true); errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("%s: %w: another process is at it", l.paths.Data, ErrInUse)
	}
	if l.paths.Checksums != "" {
		return l.addChecksumFile(&h, data, pause)
	}
	return l.addChecksumsToMap(&h, data, pause)
}

// addChecksumsToMap adds them behind the map.
func (l *Layer) addChecksumsToMap(old *Header, data vfs.File, pause func(off int64) error) error {
	f, err := l.openAgain(l.paths.Map, os.O_RDWR, l.mapf)
	if err != nil {
		return err
	}
	defer f.Close()
	var sector [SectorSize]byte
	h, err := readHeader(f, &sector)
	if err != nil {
		return err
	}
	if h.UUID != old.UUID || h.State != Sealed {
		return &Fault{Path: l.paths.Map, What: "layer", Expected: fmt.Sprintf("%v, sealed", old.UUID), Found: fmt.Sprintf("%v, %v", h.UUID, h.State), Advice: adviceFiles, Err: ErrMismatch}
	}
	if !h.HasChecksums() {
		if err := extendForChecksums(f, &h); err != nil {
			return err
		}
		if h.ChecksumsCRC, err = writeTable(f, h.MapSize(), l.mapf, data, &h, pause); err != nil {
			return err
		}
		h.Features.MayIgnore |= featureDataChecksums
		h.encode(&sector)
		if err := writeDurably(f, sector[:], 0); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.header, l.table = h, &checksumTable{l.mapf, h.MapSize(), h.ChecksumsCRC}
	l.mu.Unlock()
	return nil
}

// addChecksumFile adds them in a file of their own. What is in its table before is part
// of what will be: of a process that did not come to the end, or that is at it.
func (l *Layer) addChecksumFile(h *Header, data vfs.File, pause func(off int64) error) error {
	f, err := createChecksumFile(l.fs, l.paths.Checksums)
	if err != nil {
		return err
	}
	t, err := readChecksumFile(f, h)
	if err == nil && t == nil {
		t, err = fillChecksumFile(f, l.mapf, data, h, pause)
	}
	if err != nil {
		f.Close()
		return err
	}
	l.mu.Lock()
	l.table = t
	l.mu.Unlock()
	return nil
}

// fillChecksumFile writes a whole sums file.
func fillChecksumFile(f vfs.File, mapf mapReader, data vfs.File, h *Header, pause func(off int64) error) (*checksumTable, error) {
	if err := f.Truncate(h.checksumFileEnd()); err != nil {
		return nil, err
	}
	crc, err := writeTable(f, checksumTableOffset, mapf, data, h, pause)
	if err != nil {
		return nil, err
	}
	sector := encodeChecksumHeader(h, crc)
	return &checksumTable{f, checksumTableOffset, crc}, writeDurably(f, sector[:], 0)
}

// openAgain opens a file that is open already. Somebody may have put another one in
// its place.
func (l *Layer) openAgain(path string, flag int, open vfs.File) (vfs.File, error) {
	f, err := l.fs.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	expected, err := open.Identity()
	if err == nil {
		var found vfs.Identity
		if found, err = f.Identity(); err == nil && !sameFile(expected, found) {
			err = &Fault{Path: path, What: "file", Expected: "the one that is open", Found: "another one", Advice: adviceFiles, Err: ErrMismatch}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// extendForChecksums makes the map file long enough. Behind the map there may be pages of a
// table that was not finished, and nothing else: what is not written shall read as
// zeros.
func extendForChecksums(f vfs.File, h *Header) error {
	id, err := f.Identity()
	if err != nil {
		return err
	}
	switch {
	case id.Block:
		return fmt.Errorf("%s: %w: it is a device", f.Name(), ErrNoRoom)
	case id.Size < h.MapSize() || id.Size > h.checksumsEnd() || id.Size%MapPageSize != 0:
		return fmt.Errorf("%s: %w: expected %d bytes, found %d", f.Name(), ErrNoRoom, h.MapSize(), id.Size)
	case id.Size < h.checksumsEnd():
		return f.Truncate(h.checksumsEnd())
	}
	return nil
}

// writeTable writes the table of data sums durably to byte at of a file, and returns
// its checksum.
func writeTable(f vfs.File, at int64, mapf mapReader, data vfs.File, h *Header, pause func(off int64) error) (crc uint32, err error) {
	t := &checksumBuilder{header: h, mapf: mapf, data: data, read: readData(data), throttle: pause}
	t.sink = func(page uint64, raw []byte) error {
		crc = addRawPageCRC(crc, page, raw)
		_, err := f.WriteAt(raw, at+int64(page)*MapPageSize)
		return err
	}
	if err := t.build(); err != nil {
		return 0, err
	}
	return crc, f.Datasync()
}
