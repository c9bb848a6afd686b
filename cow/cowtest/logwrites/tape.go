package logwrites

import (
	"fmt"

	"cowblk/cow/cowtest/faultfs"
)

// Export logs what a tape has recorded of one file, as if it were a block device:
// writes, punches as discards, syncs as flushes, the test's notes and changes of
// length as marks. A write that does not end on a sector is filled up with zeros.
// Failed syncs are left out.
func Export(l *Writer, t *faultfs.Tape, name string) error {
	for i, r := range t.Of(name) {
		var err error
		switch {
		case r.Kind == faultfs.Mark:
			err = l.Mark(fmt.Sprint(r.Note))
		case r.Failed:
		case r.Kind == faultfs.Write:
			p := make([]byte, (len(r.Data)+SectorSize-1)/SectorSize*SectorSize)
			copy(p, r.Data)
			err = l.Write(r.Off, p)
		case r.Kind == faultfs.Punch:
			err = l.Discard(r.Off, r.Len)
		case r.Kind == faultfs.Truncate:
			err = l.Mark(fmt.Sprintf("length %d", r.Len))
		case r.Kind == faultfs.Sync:
			err = l.Flush()
		}
		if err != nil {
			return fmt.Errorf("record %d, %s: %w", i, r, err)
		}
	}
	return l.Close()
}
