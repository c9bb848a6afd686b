package layer

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"cowblk/cow/vfs"
)

// attachShared makes s the shared map of the head. No other goroutine uses the layer yet.
func (l *Layer) attachShared(s *sharedMap) {
	l.shared, l.bitmap.shared = s, s
	runtime.AddCleanup(l.bitmap, func(mem *vfs.Shared) { _ = mem.Close() }, s.mem)
}

// growData makes the data file as long as the disk. A set bit over a hole is a block of zeros, for
// which no data is written; beyond the end of the file it would be damage.
func (l *Layer) growData() error {
	id, err := l.data.Identity()
	if err != nil || id.Block || id.Size >= l.header.DataOffset+l.header.Size {
		return err
	}
	return growDurably(l.data, l.header.DataOffset+l.header.Size)
}

// markOpen records in the header, durably, that the head is open, and where the bits are that are
// not in the map.
func (l *Layer) markOpen(dir string) error {
	h := l.header
	h.Clean, h.Owned, h.MapCRC = false, 0, 0
	h.Features.ClearOnOpen &= knownClearOnOpen &^ featureHeadCRC
	if l.shared != nil {
		if err := l.resetErrorCount(); err != nil {
			return l.unreadable(err)
		}
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
		// The last sync of the map may have failed. Then pages that the page cache reports as
		// written are not on the device, and no sync will write them: the first flush writes all of
		// them again (32 MiB for a TiB of 4 KiB blocks).
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
			_ = removeSharedOf(sfs, l.mapf, &old) // no header names it any more
		}
	}
	return nil
}

// newShared creates an empty shared map and makes h name it.
func (l *Layer) newShared(h *Header, dir string) error {
	sfs, ok := l.fs.(vfs.SharedFS)
	if !ok {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, errors.ErrUnsupported)
	}
	if len(dir) > maxSharedDir {
		return fmt.Errorf("directory for shared maps %q: expected at most %d bytes, found %d: %w",
			dir, maxSharedDir, len(dir), ErrInvalid)
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
	data, _, err := fileTimes(sfs, l.data)
	var errorCount uint64
	if err == nil {
		errorCount, err = writeBackErrors(sfs, dir, id.Data.Instance)
	}
	if err != nil {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, err)
	}
	s, err := createShared(sfs, sharedPath(dir, l.header.UUID, generation), id, data, errorCount,
		l.header.MapPages())
	if err != nil {
		return fmt.Errorf("%w for %s: %w", ErrNoShared, l.paths.Map, err)
	}
	l.attachShared(s)
	h.setShared(generation, id.Boot, dir)
	return nil
}

// beginMapChange records that the map is about to be changed, for a process that finds a partial
// change.
func (l *Layer) beginMapChange() { l.setMapTimes(0, 0) }

// endMapChange records the time of this process's last change of the map: a later change is by
// another program.
func (l *Layer) endMapChange() {
	if l.shared == nil {
		return
	}
	// On an error the map stays recorded as being changed.
	if at, mtime, err := fileTimes(l.fs.(vfs.SharedFS), l.mapf); err == nil {
		l.setMapTimes(at, mtime)
	}
}

func (l *Layer) setMapTimes(at, mtime uint64) {
	if l.shared == nil || l.shared.broken.Load() {
		return
	}
	err := guarded(func() {
		l.shared.setWord(sharedMTime, mtime)
		l.shared.setWord(sharedChanged, at)
	})
	if err != nil {
		l.shared.invalidate()
	}
}

// removeShared removes the shared map, which the header does not name any more. A file that cannot
// be removed uses memory until the kernel stops.
func (l *Layer) removeShared() {
	s := l.shared
	if s == nil {
		return
	}
	_ = l.fs.Remove(s.file.Name())
	_ = s.file.Close()
	l.shared = nil
}

// Detach closes the files of a head at once, for another process to continue with it: nothing is
// synced or written, and the head is not marked clean. The bits that are not in the map are in the
// shared map; without one they must have been flushed. A head whose sync has failed is closed too,
// but with an error, and its shared map stays invalid.
//
// The next process skips what an open does after a kill. A head whose map markOpen wanted to be
// written again, and no flush has, is left as after a kill.
func (l *Layer) Detach() error {
	err := l.writable()
	if err == nil && l.shared != nil && !l.shared.broken.Load() && !l.bitmap.rewrite.Load() {
		err = l.shared.setState(stateDetached)
	}
	return errors.Join(err, l.Abandon())
}
