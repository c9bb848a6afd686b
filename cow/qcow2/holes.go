package qcow2

import (
	"errors"
	"fmt"
	"io"
)

// dataFinder is the part of vfs.File that finds holes.
type dataFinder interface {
	NextData(off int64) (start, end int64, err error)
}

// extent is what the last call of NextData said: a hole in [from, start), data in [start, end).
type extent struct {
	file             dataFinder // nil: it is not known where the file has holes
	from, start, end int64
}

// find makes the extent contain the offset off of the file, which has size bytes.
func (e *extent) find(off, size int64) error {
	if off >= e.from && off < e.end {
		return nil
	}
	start, end, err := e.file.NextData(off)
	switch {
	case errors.Is(err, io.EOF):
		start, end = size, size
	case err != nil:
		return fmt.Errorf("look for data at offset %d: %w", off, err)
	}
	e.from, e.start, e.end = off, start, end
	return nil
}

// withoutHoles returns the kind of n bytes of the disk that are at offset host of the file, and how
// many of them have it: Data in a hole of the file is Zero. An image of a size with
// preallocated metadata refers to such holes for the whole disk. Bytes beyond the end of the file
// stay Data: their read fails.
func (img *Image) withoutHoles(kind Kind, host, n int64) (Kind, int64, error) {
	e := &img.holes
	if kind != Data || e.file == nil || host >= img.size {
		return kind, n, nil
	}
	if err := e.find(host, img.size); err != nil {
		return 0, 0, err
	}
	if host < e.start {
		return Zero, min(n, min(e.start, img.size)-host), nil
	}
	return Data, min(n, e.end-host), nil
}
