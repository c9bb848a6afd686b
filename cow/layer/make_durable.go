package layer

import (
	"errors"
	"io/fs"
	"os"
)

// MakeDurable makes the unflushed bits that a process has left of a former head durable, for a
// layer that is open for reading and cannot be sealed because others read it too. Afterwards the
// layer has no unflushed bits.
//
// Several processes may do so at once: they all write what the map and the same shared map say.
func (l *Layer) MakeDurable() (err error) {
	if l.Header().State == Sealed || l.Header().Clean {
		return nil
	}
	defer addContext(&err, "make layer durable")
	w := newLayer(l.fs, l.paths, true)
	w.sector, w.header, w.bitmap = l.sector, l.header, l.bitmap
	defer w.Abandon()
	if w.mapf, err = l.fs.OpenFile(l.paths.Map, os.O_RDWR, 0); err != nil {
		return err
	}
	if w.data, err = l.fs.OpenFile(l.paths.Data, os.O_RDWR, 0); err != nil {
		return err
	}
	if h := &l.header; h.Generation != 0 {
		if w.shared, _, err = l.openValidShared(OpenParams{Write: true,
			Unflushed: KeepUnflushed}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	l.bitmap.markTouched() // see markOpen
	if _, err := w.Flush(nil); err != nil {
		return err
	}
	h := w.header
	h.clearShared()
	if err := w.writeHeader(h); err != nil {
		return err
	}
	w.removeShared()
	l.mu.Lock()
	l.header, l.sector = w.header, w.sector
	l.mu.Unlock()
	return nil
}
