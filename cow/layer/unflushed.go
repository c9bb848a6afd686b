package layer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

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
		s, err := l.believe(o)
		if err != nil {
			// Somebody may have made the bits durable, and removed it, just now.
			var sector [SectorSize]byte
			h, herr := readHeader(l.mapf, &sector)
			if herr == nil && h != l.header && h.State == Head && !h.Clean {
				l.header, l.sector = h, sector
				continue
			}
			return err
		}
		if s == nil {
			return l.data.DropCache()
		}
		return l.recoverFrom(s, o.Write, o.Unflushed)
	}
}

// believe opens the shared map that the header names, if what it says is still true;
// nil: it is not, or the header names none.
//
// It is true if nothing has happened to map, data and page cache since it was written,
// but the end of a process: the kernel runs since then, both files are the same, on the
// same mount of their file systems, the header is of the same opening, no sync has
// failed, and nobody has changed the map.
func (l *Layer) believe(o OpenParams) (*sharedMap, error) {
	h := &l.header
	if h.Generation == 0 || o.Unflushed == DropUnflushed {
		return nil, nil
	}
	sfs, ok := l.fs.(vfs.SharedFS)
	if !ok {
		return nil, l.unreadable(errors.ErrUnsupported)
	}
	expected, err := l.identify(sfs, h.Generation)
	if err != nil {
		return nil, l.unreadable(err)
	}
	if h.Boot != expected.Boot {
		return nil, nil
	}
	s, err := openShared(sfs, l.sharedPath(), h.MapPages(), o.Write)
	if err != nil {
		return nil, l.unreadable(err)
	}
	ok, err = l.holds(sfs, s, expected, o.Unflushed)
	if err != nil {
		return nil, errors.Join(l.unreadable(err), s.close())
	}
	if !ok {
		return nil, s.close()
	}
	return s, nil
}

func (l *Layer) sharedPath() string {
	return sharedPath(l.header.SharedDir, l.header.UUID, l.header.Generation)
}

func (l *Layer) unreadable(err error) error {
	if errors.Is(err, ErrUnflushed) {
		return err
	}
	return &unreadableMap{err, &Fault{Path: l.paths.Map, What: "their record", Expected: "one in " + l.sharedPath(), Found: err.Error(), Advice: adviceUnflushed, Err: ErrUnflushed}}
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
	id := &identity{UUID: l.header.UUID, Generation: generation, Boot: newBootID(boot)}
	if id.Map, err = identifyFile(sfs, l.mapf); err == nil {
		id.Data, err = identifyFile(sfs, l.data)
	}
	return id, err
}

// holds compares what s says with what it has to say.
func (l *Layer) holds(sfs vfs.SharedFS, s *sharedMap, expected *identity, policy Unflushed) (bool, error) {
	found, err := s.identity()
	if err != nil {
		return false, err
	}
	var state, changed, mtime, data uint64
	err = guarded(func() {
		state, changed, mtime, data = s.word(sharedState), s.word(sharedChanged), s.word(sharedMTime), s.word(sharedData)
	})
	if err != nil {
		return false, err
	}
	if found != *expected || state == stateFailed {
		return false, nil
	}
	if state != stateServing && state != stateDetached {
		return false, &Fault{Path: s.file.Name(), What: "state", Expected: "1 or 2", Found: fmt.Sprint(state), Advice: adviceUnflushed, Err: ErrUnflushed}
	}
	if policy != KeepUnflushed {
		if same, err := l.unchanged(sfs, changed, mtime, data); err != nil || !same {
			return false, err
		}
	}
	return l.writtenBack(sfs, s)
}

// unchanged reports whether nobody has changed map or data since the process died that
// had them open: in its place somebody may have put a copy. Where that cannot be told
// from another owner, mode or name the open is refused.
func (l *Layer) unchanged(sfs vfs.SharedFS, changed, mtime, data uint64) (bool, error) {
	ambiguous := func(path string) error {
		return &Fault{Path: path, What: "time of its last change", Expected: "the one before the process died that served it", Found: "a later one, of its owner, mode, names or content",
			Advice: "if only its owner, mode or names were changed, open the disk with --keep-unflushed; if a copy of the files was put back, with --drop-unflushed", Err: ErrUnflushed}
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
func (l *Layer) recoverFrom(s *sharedMap, write bool, policy Unflushed) error {
	end := uint64(0)
	err := s.read(l.header.MapPages(), func(page uint64, words []uint64) error {
		c := census{blocks: l.header.Blocks()}
		if err := c.add(page, words, false); err != nil {
			return err
		}
		end = max(end, c.end)
		l.bitmap.merge(page, words)
		if l.evicted && policy != KeepUnflushed {
			return l.checkHoles(page, words)
		}
		return nil
	})
	if err == nil {
		err = l.checkData(end)
	}
	if err != nil || !write {
		return errors.Join(err, s.close())
	}
	l.adopt(s)
	return nil
}

// adopt makes s the shared map of the head. Nobody else uses the layer yet.
func (l *Layer) adopt(s *sharedMap) {
	l.shared, l.bitmap.shared = s, s
	runtime.AddCleanup(l.bitmap, func(mem *vfs.Shared) { _ = mem.Close() }, s.mem)
}

// becomeHead makes the header say, durably, that the head is open, and where the bits
// are that are not in the map.
func (l *Layer) becomeHead(dir string) error {
	h := l.header
	h.Clean, h.Owned, h.MapCRC = false, 0, 0
	h.Features.ClearOnOpen &= knownClearOnOpen &^ featureHeadCRC
	if l.shared != nil {
		detached := false
		err := guarded(func() {
			detached = l.shared.word(sharedState) == stateDetached
			l.shared.setWord(sharedState, stateServing)
		})
		if err != nil {
			return l.unreadable(err)
		}
		if detached {
			return nil // the last process has made the header durable
		}
	}
	if !l.header.Clean {
		// The last sync of the map may have failed. Then pages read here from the
		// page cache, where they count as written, are not on the device, and no
		// sync will put them there: the first flush writes all of them again (32 MiB
		// for a TiB of 4 KiB blocks).
		l.bitmap.markTouched()
	}
	if l.shared != nil {
		return l.writeHeader(h)
	}
	old := l.header
	h.clearShared()
	if dir != "" {
		if err := l.newShared(&h, dir); err != nil {
			return err
		}
	}
	// After an error the file stays: the header may name it.
	if err := l.writeHeader(h); err != nil {
		return err
	}
	if old.Generation != 0 {
		if sfs, ok := l.fs.(vfs.SharedFS); ok {
			_ = removeOwn(sfs, l.mapf, &old) // it means nothing any more
		}
	}
	return nil
}

// newShared makes an empty shared map and has h name it.
func (l *Layer) newShared(h *Header, dir string) error {
	sfs, ok := l.fs.(vfs.SharedFS)
	if !ok {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, errors.ErrUnsupported)
	}
	if len(dir) > maxSharedDir {
		return fmt.Errorf("directory for shared maps %q: expected at most %d bytes, found %d: %w", dir, maxSharedDir, len(dir), ErrInvalid)
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	generation := binary.LittleEndian.Uint64(random[:]) | 1
	id, err := l.identify(sfs, generation)
	if err != nil {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, err)
	}
	data, _, err := times(sfs, l.data)
	var told uint64
	if err == nil {
		told, err = errorsTold(sfs, dir, id.Data.Instance)
	}
	if err != nil {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, err)
	}
	s, err := createShared(sfs, sharedPath(dir, l.header.UUID, generation), id, data, told, l.header.MapPages())
	if err != nil {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, err)
	}
	l.adopt(s)
	h.setShared(generation, id.Boot, dir)
	return nil
}

// mapChanges says that the map is about to be changed, for whoever finds it half changed.
func (l *Layer) mapChanges() { l.setChanged(0, 0) }

// mapChanged says when this process has changed the map last: whatever changes it
// later is another one.
func (l *Layer) mapChanged() {
	if l.shared == nil {
		return
	}
	// Without an answer it stays as if the map were being changed.
	if at, mtime, err := times(l.fs.(vfs.SharedFS), l.mapf); err == nil {
		l.setChanged(at, mtime)
	}
}

func (l *Layer) setChanged(at, mtime uint64) {
	if l.shared == nil || l.shared.broken.Load() {
		return
	}
	err := guarded(func() {
		l.shared.setWord(sharedMTime, mtime)
		l.shared.setWord(sharedChanged, at)
	})
	if err != nil {
		l.shared.giveUp()
	}
}

// removeShared removes the shared map, of which the header says nothing any more. One
// that cannot be removed takes memory until the kernel stops.
func (l *Layer) removeShared() {
	s := l.shared
	if s == nil {
		return
	}
	_ = l.fs.Remove(s.file.Name())
	_ = s.file.Close()
	l.shared = nil
}

// Detach closes the files of a head for another process to go on with, at once:
// nothing is synced or written, and the head is not marked clean. The bits that are
// not in the map are in the shared map; without one they must have been flushed. A
// head whose sync has failed is closed too, but with an error: nobody must go on with
// it as if nothing had happened.
func (l *Layer) Detach() error {
	err := l.writable()
	if err == nil && l.shared != nil && !l.shared.broken.Load() {
		err = l.shared.setState(stateDetached)
	}
	return errors.Join(err, l.Abandon())
}

// MakeDurable makes what a process has left unflushed of a former head durable, where
// the layer is open for reading and others read it too, which keeps it from being
// sealed. From then on the layer owes nothing to anybody.
//
// Several may do so at once: they all write what the map and the same shared map say.
func (l *Layer) MakeDurable() error {
	if l.Header().State == Sealed || l.Header().Clean {
		return nil
	}
	if err := l.makeDurable(); err != nil {
		return fmt.Errorf("make layer durable: %w", err)
	}
	return nil
}

func (l *Layer) makeDurable() error {
	w := &Layer{fs: l.fs, paths: l.paths, write: true, sector: l.sector, header: l.header, bitmap: l.bitmap}
	defer w.Abandon()
	var err error
	if w.mapf, err = l.fs.OpenFile(l.paths.Map, os.O_RDWR, 0); err != nil {
		return err
	}
	if w.data, err = l.fs.OpenFile(l.paths.Data, os.O_RDWR, 0); err != nil {
		return err
	}
	if h := &l.header; h.Generation != 0 {
		if w.shared, err = l.believe(OpenParams{Write: true, Unflushed: KeepUnflushed}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	l.bitmap.markTouched() // see becomeHead
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
