package layer

import (
	"errors"
	"fmt"
	"os"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// AddChecksums computes the checksums of a sealed layer's data, if it has none. It reads all of the
// data, writes the table behind the map, or to Paths.Checksums if that is set, and then records it
// in a header. A crash leaves the layer with or without checksums. Two processes that run it at the
// same time write the same. Afterwards Checksums returns them. ErrInUse: another process is
// computing them.
//
// throttle is called after each piece of at most 64 KiB with the offset behind it in the data file;
// its error ends the work; nil: no throttling. ErrNoTableSpace: the table belongs behind the map,
// and the map is a device, or a file in which something else follows the map.
func (l *Layer) AddChecksums(throttle func(off int64) error) (err error) {
	defer addContext(&err, "add checksums of the data")
	h := l.Header()
	if h.State != Sealed {
		return fmt.Errorf("%s: %w", l.paths.Map, ErrNotSealed)
	}
	if l.HasChecksums() {
		return nil
	}
	// Another descriptor than the guests': the advice and the lock are for this work alone.
	data, err := l.openAgain(l.paths.Data, os.O_RDONLY, l.Data())
	if err != nil {
		return err
	}
	defer data.Close()
	// Read-ahead would do the work of many pieces at once, up to 8 MiB, while guests wait for the
	// processor. A refusal of the advice is harmless.
	_ = data.AdviseRandom()
	// Processes that share a layer begin together after an upgrade. One of them is enough. Without
	// such locks they may all compute the same.
	if err := data.Lock(true); errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("%s: %w: another process computes them", l.paths.Data, ErrInUse)
	}
	if l.paths.Checksums != "" {
		return l.addChecksumFile(&h, data, throttle)
	}
	return l.addChecksumsToMap(&h, data, throttle)
}

// addChecksumsToMap writes the table behind the map.
func (l *Layer) addChecksumsToMap(old *Header, data vfs.File,
	throttle func(off int64) error) error {
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
		return finding.New(ErrMismatch, l.paths.Map, "layer", fmt.Sprintf("%v, sealed", old.UUID),
			fmt.Sprintf("%v, %v", h.UUID, h.State), adviceFiles)
	}
	if !h.HasChecksums() {
		if err := extendForChecksums(f, &h); err != nil {
			return err
		}
		if h.ChecksumsCRC, err = writeTable(f, h.MapSize(), l.mapf, data, &h,
			throttle); err != nil {
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

// addChecksumFile writes the table to a file of its own. The table of a process that was
// interrupted, or is still at work, has the same content as far as it goes.
func (l *Layer) addChecksumFile(h *Header, data vfs.File, throttle func(off int64) error) error {
	f, err := createChecksumFile(l.fs, l.paths.Checksums)
	if err != nil {
		return err
	}
	t, err := readChecksumFile(f, h)
	if err == nil && t == nil {
		t, err = fillChecksumFile(f, l.mapf, data, h, throttle)
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

// fillChecksumFile writes a whole checksum file.
func fillChecksumFile(f vfs.File, mapf mapReader, data vfs.File, h *Header,
	throttle func(off int64) error) (*checksumTable, error) {
	if err := f.Truncate(h.checksumFileEnd()); err != nil {
		return nil, err
	}
	crc, err := writeTable(f, checksumTableOffset, mapf, data, h, throttle)
	if err != nil {
		return nil, err
	}
	sector := encodeChecksumHeader(h, crc)
	return &checksumTable{f, checksumTableOffset, crc}, writeDurably(f, sector[:], 0)
}

// openAgain opens a file that is open already. It fails if the path leads to another file now.
func (l *Layer) openAgain(path string, flag int, open vfs.File) (vfs.File, error) {
	f, err := l.fs.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	expected, err := open.Identity()
	if err == nil {
		var found vfs.Identity
		if found, err = f.Identity(); err == nil && !expected.SameFile(found) {
			err = finding.New(ErrMismatch, path, "file", "the one that is open", "another one",
				adviceFiles)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// extendForChecksums makes the map file long enough for the table. Behind the map there may only be
// pages of an unfinished table: pages that are not written must read as zeros.
func extendForChecksums(f vfs.File, h *Header) error {
	id, err := f.Identity()
	if err != nil {
		return err
	}
	switch {
	case id.Block:
		return fmt.Errorf("%s: %w: it is a device", f.Name(), ErrNoTableSpace)
	case id.Size < h.MapSize() || id.Size > h.checksumsEnd() || id.Size%MapPageSize != 0:
		return fmt.Errorf("%s: %w: expected %d bytes, found %d", f.Name(), ErrNoTableSpace,
			h.MapSize(), id.Size)
	case id.Size < h.checksumsEnd():
		return f.Truncate(h.checksumsEnd())
	}
	return nil
}

// writeTable writes the checksum table durably to byte at of f, and returns the table's own
// checksum.
func writeTable(f vfs.File, at int64, mapf mapReader, data vfs.File, h *Header,
	throttle func(off int64) error) (crc uint32, err error) {
	t := &checksumBuilder{header: h, mapf: mapf, data: data, read: readData(data),
		throttle: throttle}
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
