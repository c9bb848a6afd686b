package layer

import (
	"fmt"
	"os"

	"cowblk/cow/vfs"
)

// Repair applies the remedies that Inspect names, each made durable before the next, and returns
// them. It guesses nothing and changes no content; a fault without a remedy stays, and Open refuses
// the layer as before. After a crash at any point Repair can be run again. It changes nothing in a
// layer without findings.
//
// It must be the only user of the layer. Errors: ErrInUse, the operating system's.
func Repair(fsys vfs.FS, p Paths, k Known) (done []string, err error) {
	x := &inspector{fs: fsys, flag: os.O_RDWR, paths: p, params: InspectParams{Known: k, Map: true}}
	defer x.close()
	defer addContext(&err, "repair layer")
	if err := x.open(true); err != nil {
		return nil, err
	}
	if err := x.inspect(); err != nil {
		return nil, err
	}
	for _, f := range x.Findings {
		if f.Remedy == NoRemedy {
			continue
		}
		err := markMapChanging(fsys, x.mapf, &x.Header)
		if err == nil {
			err = x.apply(f.Remedy)
		}
		if err != nil {
			return done, fmt.Errorf("%s: %w", p.Map, err)
		}
		done = append(done, f.Remedy)
	}
	return done, nil
}

// apply applies one remedy durably.
func (x *inspector) apply(remedy string) error {
	switch remedy {
	case RestoreHeader:
		return writeDurably(x.mapf, x.sector[:], 0)
	case GrowMap:
		return growDurably(x.mapf, x.Header.length())
	case ClearBits:
		littleEndian(x.lastPage[:])
		return writeDurably(x.mapf, wordBytes(x.lastPage[:]), x.Header.MapSize()-MapPageSize)
	case GrowData:
		return growDurably(x.data, x.dataSize)
	case RestoreChecksums:
		return x.restoreChecksums()
	}
	return nil
}

// restoreChecksums writes the whole table: a wrong entry may be where it must be zero.
func (x *inspector) restoreChecksums() error {
	h, t := &x.Header, x.table
	if err := t.file.PunchHole(t.off, int64(h.checksumPages())*MapPageSize); err != nil {
		return err
	}
	if x.checksums != nil {
		_, err := fillChecksumFile(x.checksums, x.mapf, x.data, h, nil)
		return err
	}
	_, err := writeTable(x.mapf, t.off, x.mapf, x.data, h, nil)
	return err
}

func writeDurably(f vfs.File, p []byte, off int64) error {
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	return f.Datasync()
}

func growDurably(f vfs.File, n int64) error {
	if err := f.Truncate(n); err != nil {
		return err
	}
	return f.Datasync()
}
