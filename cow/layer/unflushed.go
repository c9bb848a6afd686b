package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"cowblk/cow/vfs"
)

// recoverUnflushed takes up the bits that a process has left which had the layer open
// as its head, and did not close it. They are dirty: whoever opened it for writing
// owes their durability. A shared map that cannot be believed is as good as none: what
// was not flushed is lost as at a power cut, and of the data nothing is served that the
// page cache holds and the device may not have.
//
// ErrUnflushed: it exists, or should, and cannot be read.
func (l *Layer) recoverUnflushed(o OpenParams) error {
	for {
		s, dropped, err := l.believe(o)
		if err != nil {
			// Somebody may have made the bits durable, and removed it, just now.
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

// Reasons why a shared map is not believed.
var (
	ErrRestarted  = errors.New("the kernel was started anew since")
	ErrGivenUp    = errors.New("it was asked for (--drop-unflushed)")
	errOtherFiles = errors.New("the disk's files are others, a copy perhaps, or their file system was mounted anew")
	errRewritten  = errors.New("the map was written since, by another program")
	errSync       = errors.New("a sync had failed")
)

// believe opens the shared map that the header names, if what it says is still true;
// nil: it is not, or the header names none. dropped says why it is not.
//
// It is true if nothing has happened to map, data and page cache since it was written,
// but the end of a process: the kernel runs since then, both files are the same, on the
// same mount of their file systems, the header is of the same opening, no sync has
// failed, and nobody has changed the map.
func (l *Layer) believe(o OpenParams) (s *sharedMap, dropped, err error) {
	h := &l.header
	switch {
	case h.Generation == 0:
		return nil, nil, nil
	case o.Unflushed == DropUnflushed:
		return nil, ErrGivenUp, nil
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
	dropped, err = l.holds(sfs, s, expected, o.Unflushed)
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

// mapPath is where the map is; it is only compared, with what was found so before.
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
	return &unreadableMap{err, &Fault{Path: l.paths.Map, What: "their record", Expected: "one in " + l.sharedPath(), Found: found, Advice: adviceUnflushed, Err: ErrUnflushed}}
}

// unreadableMap is a Fault with the error that is its cause.
type unreadableMap struct {
	cause error
	*Fault
}

func (u *unreadableMap) Unwrap() []error { return []error{u.Fault, u.cause} }

// identify says what a shared map of this layer's head has to say now.
func (l *Layer) identify(sfs vfs.SharedFS, generation uint64) (*identity, error) {
	boot, err := sfs.Boot()
	if err != nil {
		return nil, err
	}
	id := &identity{UUID: l.header.UUID, Generation: generation, Boot: newBootID(boot), Path: l.mapPath()}
	if id.Map, err = identifyFile(sfs, l.mapf); err == nil {
		id.Data, err = identifyFile(sfs, l.data)
	}
	return id, err
}

// holds compares what s says with what it has to say; nil: it is the same.
func (l *Layer) holds(sfs vfs.SharedFS, s *sharedMap, expected *identity, policy Unflushed) (dropped, err error) {
	found, err := s.identity()
	if err != nil {
		return nil, err
	}
	var state, changed, mtime, data uint64
	err = guarded(func() {
		state, changed, mtime, data = s.word(sharedState), s.word(sharedChanged), s.word(sharedMTime), s.word(sharedData)
	})
	if err != nil {
		return nil, err
	}
	found.Path = expected.Path // it may be seen under another name
	switch {
	case found != *expected:
		return errOtherFiles, nil
	case state == stateFailed:
		return errSync, nil
	case state != stateServing && state != stateDetached:
		return nil, &Fault{Path: s.file.Name(), What: "state", Expected: "1 or 2", Found: fmt.Sprint(state), Advice: adviceUnflushed, Err: ErrUnflushed}
	}
	if policy != KeepUnflushed {
		if same, err := l.unchanged(sfs, changed, mtime, data); err != nil {
			return nil, err
		} else if !same {
			return errRewritten, nil
		}
	}
	return l.writtenBack(sfs, s, policy)
}

// unchanged reports whether nobody has changed map or data since the process died that
// had them open: in its place somebody may have put a copy. Where that cannot be told
// from another owner, mode or name the open is refused.
func (l *Layer) unchanged(sfs vfs.SharedFS, changed, mtime, data uint64) (bool, error) {
	ambiguous := func(path string) error {
		return &Fault{Path: path, What: "time of its last change", Expected: "the one before the process died that served it", Found: "a later one, of its owner, mode, names or content",
			Advice: "if only its owner, mode or names were changed, serve the disk with --keep-unflushed; if a copy of the files was put back, with --drop-unflushed", Err: ErrUnflushed}
	}
	now, id, err := times(sfs, l.mapf)
	switch {
	case err != nil:
		return false, err
	case now == 0 || changed == 0: // it is not kept; or the process died while it changed the map
	case now == changed:
	case id != mtime:
		return false, nil // somebody has written to the map
	default:
		return false, ambiguous(l.paths.Map)
	}
	// The guest's last write has set both times of the data.
	now, id, err = times(sfs, l.data)
	if err == nil && now != 0 && now != data && now != id {
		err = ambiguous(l.paths.Data)
	}
	return err == nil, err
}

// times are vfs.SharedFS.Changed and the mtime of a file.
func times(sfs vfs.SharedFS, f vfs.File) (changed, mtime uint64, err error) {
	at, err := sfs.Changed(f)
	if err != nil {
		return 0, 0, err
	}
	id, err := f.Identity()
	return uint64(at), uint64(id.MTime), err
}

// recoverFrom merges the bits of s, after the checks that bits of a map must pass.
func (l *Layer) recoverFrom(s *sharedMap, write bool) error {
	end, before := uint64(0), l.bitmap.Count()
	err := s.read(l.header.MapPages(), func(page uint64, words []uint64) error {
		c := census{blocks: l.header.Blocks()}
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
	l.recovered = l.bitmap.Count() - before
	if err != nil || !write {
		return errors.Join(err, s.close())
	}
	l.adopt(s)
	return nil
}

// Unflushed is how many blocks a process had left unflushed that were taken up when the
// layer was opened, and are not in its map; and why others were not, which is then as
// after a power cut. Nil: there were none, as far as anybody knows.
func (l *Layer) Unflushed() (recovered uint64, dropped error) { return l.recovered, l.dropped }
