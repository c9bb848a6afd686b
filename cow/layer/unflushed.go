package layer

import (
	"errors"
	"io/fs"
	"path/filepath"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// recoverUnflushed recovers the bits that a process has left that had the layer open as its head
// and did not close it. They are dirty: a caller that opens the layer for writing makes them
// durable. Without a valid shared map unflushed data is lost as in a power cut: the page cache is
// dropped, so that no data is served that the device may not have.
//
// ErrUnflushed: the shared map exists, or should, and cannot be read.
func (l *Layer) recoverUnflushed(o OpenParams) error {
	for {
		s, dropped, err := l.openValidShared(o)
		if err != nil {
			// Another process may just have made the bits durable and removed the shared map.
			var sector [SectorSize]byte
			h, herr := readHeader(l.mapf, &sector)
			if herr == nil && h != l.header && h.State == Head && !h.Clean {
				l.header, l.sector = h, sector
				if err := l.checkMap(); err != nil { // the map has them now
					return err
				}
				continue
			}
			return err
		}
		l.dropped = dropped
		if s == nil {
			return l.data.DropCache()
		}
		return l.recoverFrom(s, o.Write)
	}
}

// Reasons for which a shared map is not valid.
var (
	ErrRestarted     = errors.New("the kernel has been restarted since")
	ErrDropRequested = errors.New("they were dropped on request (--drop-unflushed)")
	errOtherFiles    = errors.New(
		"the disk's files are others, such as a copy, or their file system was mounted again")
	errRewritten = errors.New("another program has written to the map since")
	errSync      = errors.New("a sync failed before")
)

// openValidShared opens the shared map that the header names, if it is valid; nil: it is not, or
// the header names none. dropped is the reason why it is not.
//
// It is valid if nothing has happened to map, data and page cache since it was written, except the
// end of a process: the kernel has run since, both files are the same, on the same mount of their
// file systems, the header is of the same opening, no sync has failed, and no other program has
// changed the map.
func (l *Layer) openValidShared(o OpenParams) (s *sharedMap, dropped, err error) {
	h := &l.header
	switch {
	case h.Generation == 0:
		return nil, nil, nil
	case o.Unflushed == DropUnflushed:
		return nil, ErrDropRequested, nil
	}
	sfs, ok := l.fs.(vfs.SharedFS)
	if !ok {
		return nil, nil, l.unreadable(errors.ErrUnsupported)
	}
	expected, err := l.identify(sfs, h.Generation)
	if err != nil {
		return nil, nil, l.unreadable(err)
	}
	if h.Boot != expected.Boot {
		return nil, ErrRestarted, nil
	}
	s, err = openShared(sfs, l.sharedPath(), h.MapPages(), o.Write)
	if err != nil {
		return nil, nil, l.unreadable(err)
	}
	dropped, err = l.checkShared(sfs, s, expected, o.Unflushed)
	if err != nil {
		return nil, nil, errors.Join(l.unreadable(err), s.close())
	}
	if dropped != nil {
		return nil, dropped, s.close()
	}
	return s, nil, nil
}

func (l *Layer) sharedPath() string {
	return sharedPath(l.header.SharedDir, l.header.UUID, l.header.Generation)
}

// mapPath returns the absolute path of the map. It is only compared with the path in a shared map.
func (l *Layer) mapPath() string {
	path, err := filepath.Abs(l.paths.Map)
	if err != nil || len(path) > maxMapPath {
		return ""
	}
	return path
}

func (l *Layer) unreadable(err error) error {
	if errors.Is(err, ErrUnflushed) {
		return err
	}
	found := err.Error()
	var p *fs.PathError
	if errors.As(err, &p) && p.Path == l.sharedPath() {
		found = p.Op + ": " + p.Err.Error()
	}
	f := finding.New(ErrUnflushed, l.paths.Map, "shared map", "a readable file "+l.sharedPath(),
		found, adviceUnflushed)
	f.Cause = err
	return f
}

// identify returns the identity that a valid shared map of this head has.
func (l *Layer) identify(sfs vfs.SharedFS, generation uint64) (*identity, error) {
	boot, err := sfs.Boot()
	if err != nil {
		return nil, err
	}
	id := &identity{UUID: l.header.UUID, Generation: generation, Boot: newBootID(boot),
		Path: l.mapPath()}
	if id.Map, err = identifyFile(sfs, l.mapf); err == nil {
		id.Data, err = identifyFile(sfs, l.data)
	}
	return id, err
}

// checkShared compares s with the identity and times that a valid shared map has; nil: it is valid.
func (l *Layer) checkShared(sfs vfs.SharedFS, s *sharedMap, expected *identity,
	policy Unflushed) (dropped, err error) {
	found, err := s.identity()
	if err != nil {
		return nil, err
	}
	var state, changed, mtime, data uint64
	err = guarded(func() {
		state, changed, mtime, data = s.word(sharedState), s.word(sharedChanged),
			s.word(sharedMTime), s.word(sharedData)
	})
	if err != nil {
		return nil, err
	}
	found.Path = expected.Path // the path may be another name of the same file
	switch {
	case found != *expected:
		return errOtherFiles, nil
	case state == stateFailed && policy != KeepUnflushed:
		return errSync, nil
	case state != stateServing && state != stateDetached && state != stateFailed:
		return nil, finding.New(ErrUnflushed, s.file.Name(), "state", "1 or 2", state,
			adviceUnflushed)
	}
	if policy != KeepUnflushed {
		if same, err := l.filesUnchanged(sfs, changed, mtime, data); err != nil {
			return nil, err
		} else if !same {
			return errRewritten, nil
		}
	}
	return l.checkWriteBack(sfs, s, policy)
}

// filesUnchanged reports whether map and data have not been changed since the process died that had
// them open: a copy may have been put in their place. Where that cannot be told from a change of
// owner, mode or name, the open is refused.
func (l *Layer) filesUnchanged(sfs vfs.SharedFS, changed, mtime, data uint64) (bool, error) {
	ambiguous := func(path string) error {
		return finding.New(ErrUnflushed, path, "time of its last change",
			"the one before the process died that served it",
			"a later one, of its owner, mode, names or content",
			"if only its owner, mode or names were changed, serve the disk with --keep-unflushed; if a copy of the files was put back, with --drop-unflushed")
	}
	now, id, err := fileTimes(sfs, l.mapf)
	switch {
	case err != nil:
		return false, err
	// not kept by the file system; or the process died during a change of the map
	case now == 0 || changed == 0:
	case now == changed:
	case id != mtime:
		return false, nil // another program has written to the map
	default:
		return false, ambiguous(l.paths.Map)
	}
	// The guest's last write has set both times of the data.
	now, id, err = fileTimes(sfs, l.data)
	if err == nil && now != 0 && now != data && now != id {
		err = ambiguous(l.paths.Data)
	}
	return err == nil, err
}

// fileTimes returns vfs.SharedFS.Changed and the mtime of a file.
func fileTimes(sfs vfs.SharedFS, f vfs.File) (changed, mtime uint64, err error) {
	at, err := sfs.Changed(f)
	if err != nil {
		return 0, 0, err
	}
	id, err := f.Identity()
	return uint64(at), uint64(id.MTime), err
}

// recoverFrom merges the bits of s into the bitmap, after the checks that bits of a map must pass.
func (l *Layer) recoverFrom(s *sharedMap, write bool) error {
	end, countBefore := uint64(0), l.bitmap.Count()
	err := s.read(l.header.MapPages(), func(page uint64, words []uint64) error {
		c := mapSummary{blocks: l.header.Blocks()}
		if err := c.add(page, words, false); err != nil {
			return err
		}
		end = max(end, c.end)
		l.bitmap.merge(page, words)
		return nil
	})
	if err == nil {
		err = l.checkData(end)
	}
	l.recovered = l.bitmap.Count() - countBefore
	if err != nil || !write {
		return errors.Join(err, s.close())
	}
	l.attachShared(s)
	return nil
}

// Unflushed returns how many blocks with unflushed bits were recovered at open that are not in the
// map, and the reason why others were not, which are lost as in a power cut; nil: none are known.
func (l *Layer) Unflushed() (recovered uint64, dropped error) { return l.recovered, l.dropped }
