package layer

import (
	"errors"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// lockMap takes the lock of a map: a writer excludes every other user, a reader excludes writers.
// All versions have it.
func lockMap(f vfs.File, exclusive bool) error {
	err := f.Lock(exclusive)
	if errors.Is(err, vfs.ErrLocked) {
		return finding.New(ErrInUse, f.Name(), "lock", "to be the only user of the layer",
			"another open file that holds it", "stop the process that serves this disk")
	}
	return err
}

// lockRanges excludes other uses of the bytes of map and data: as part of another layer, as a base,
// as a raw file. A writer has its bytes alone; readers share them. There is no flock(2) on the
// data: AddChecksums, in all versions, takes that, and several data areas may share one device. The
// header must be known.
func (l *Layer) lockRanges(exclusive bool) error {
	h := &l.header
	for _, r := range []struct {
		what   string
		file   vfs.File
		off, n int64
	}{{"map", l.mapf, 0, h.MapSize()}, {"data", l.data, h.DataOffset, h.Size}} {
		lock, err := vfs.LockExtents(l.fs, r.file, r.off, r.n, exclusive)
		if errors.Is(err, vfs.ErrLocked) {
			return InUseElsewhere(r.file.Name(), "use as "+r.what+" of layer "+h.UUID.String(),
				exclusive)
		}
		if err != nil {
			return err
		}
		l.ranges = append(l.ranges, lock)
	}
	return nil
}

// InUseElsewhere returns the ErrInUse for bytes of a file on which another process holds a lock.
// what is the use that is refused.
func InUseElsewhere(path, what string, exclusive bool) error {
	f := finding.New(ErrInUse, path, what, "no process that writes to it",
		"a process that has locked the same bytes: for a disk on them, or to serve the file raw",
		"stop that process; cowblk check shows disks that lie on the same file")
	if exclusive {
		f.Expected = "no other process that uses it"
	}
	return f
}

// LockedElsewhere returns the ErrInUse for a file that another process has locked as a whole
// (flock).
func LockedElsewhere(f vfs.File, what string, exclusive bool) error {
	fault := finding.New(ErrInUse, f.Name(), what, "no exclusive lock of the file (flock)",
		"that "+vfs.HoldersText(vfs.HoldersOf(f))+
			" holds a lock on it, as a cowblk that writes to the file does",
		"wait until that process has ended or has given the lock up, or have its user end it")
	if exclusive {
		fault.Expected = "no lock of the file (flock)"
	}
	return fault
}

// shareRanges converts the locks of a writer into those of a reader.
func (l *Layer) shareRanges() error {
	var errs []error
	for _, r := range l.ranges {
		errs = append(errs, r.Share())
	}
	return errors.Join(errs...)
}
