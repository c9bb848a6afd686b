package layer

import (
	"errors"
	"fmt"
	"os"

	"cowblk/cow/vfs"
)

// AddSums gives a sealed layer the checksums of its data, if it has none: it reads
// all of them, writes the table behind the map, and then says so in the header. A
// crash leaves the layer without or with them, and when two processes do it at a
// time they write the same. Sums returns them from then on. ErrInUse while another
// process does it.
//
// pause is called after each piece of 64 KiB at most with the bytes of the data file
// that are behind it, and ends the work with its error; nil: nobody is to be
// spared. ErrNoRoom where the map is a device, or a file that goes on behind its
// end with something else.
func (l *Layer) AddSums(pause func(off int64) error) error {
	if err := l.addSums(pause); err != nil {
		return fmt.Errorf("add checksums of the data: %w", err)
	}
	return nil
}

func (l *Layer) addSums(pause func(off int64) error) error {
	old := l.Header()
	if old.State != Sealed {
		return fmt.Errorf("%s: %w", l.paths.Map, ErrNotSealed)
	}
	if old.HasSums() {
		return nil
	}
	f, err := l.openAgain(l.paths.Map, os.O_RDWR, l.mapf)
	if err != nil {
		return err
	}
	defer f.Close()
	// Not the file that guests read, which the kernel would take for one that is
	// read in order, and read ahead.
	data, err := l.openAgain(l.paths.Data, os.O_RDONLY, l.Data())
	if err != nil {
		return err
	}
	defer data.Close()
	// A fleet's processes share their layers, and begin together after an upgrade. One
	// is enough; where there are no such locks they may all do it.
	if err := data.Lock(true); errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("%s: %w: another process is at it", l.paths.Data, ErrInUse)
	}
	var sector [SectorSize]byte
	h, err := readHeader(f, &sector)
	if err != nil {
		return err
	}
	if h.UUID != old.UUID || h.State != Sealed {
		return &Fault{Path: l.paths.Map, What: "layer", Expected: fmt.Sprintf("%v, sealed", old.UUID), Found: fmt.Sprintf("%v, %v", h.UUID, h.State), Advice: adviceFiles, Err: ErrMismatch}
	}
	if !h.HasSums() {
		if err := roomForSums(f, &h); err != nil {
			return err
		}
		if h.SumsCRC, err = writeSums(f, data, &h, pause); err != nil {
			return err
		}
		if err := f.Datasync(); err != nil {
			return err
		}
		h.Features.MayIgnore |= featureDataSums
		h.encode(&sector)
		if err := writeDurably(f, sector[:], 0); err != nil {
			return err
		}
	}
	l.mu.Lock()
	l.header = h
	l.mu.Unlock()
	return nil
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

// roomForSums makes the map file long enough. Behind the map there may be a table
// that was not finished, and nothing else: what is not written shall read as zeros.
func roomForSums(f vfs.File, h *Header) error {
	id, err := f.Identity()
	if err != nil {
		return err
	}
	if id.Block {
		return fmt.Errorf("%s: %w: it is a device", f.Name(), ErrNoRoom)
	}
	switch id.Size {
	case h.sumsEnd():
		return nil
	case h.MapSize():
		return f.Truncate(h.sumsEnd())
	}
	return fmt.Errorf("%s: %w: expected %d bytes, found %d", f.Name(), ErrNoRoom, h.MapSize(), id.Size)
}

// writeSums writes the table of data sums and returns its checksum.
func writeSums(mapf, data vfs.File, h *Header, pause func(off int64) error) (crc uint32, err error) {
	t := &sumTable{header: h, mapf: mapf, data: data, read: readData(data), pause: pause}
	t.sink = func(page uint64, raw []byte) error {
		crc = addRawPageCRC(crc, page, raw)
		_, err := mapf.WriteAt(raw, h.MapSize()+int64(page)*MapPageSize)
		return err
	}
	err = t.build()
	return crc, err
}
