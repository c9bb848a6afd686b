package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"

	"github.com/google/uuid"

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// sharedMap is a file in memory (tmpfs) with the bits of a head that are not durable in its map:
// the next process needs them if this one dies while its guest lives on. The kernel has the data of
// those blocks. The bits are nowhere else, for they must not be in the map before the data is
// durable.
//
// The process that writes the file never reads it: the bitmap in memory is private and alone says
// who owns a block. The file has the pages of the map, shifted by one page, behind a page of its
// own (see identity and the words below). A page uses memory from its first bit on. The memory is
// freed when a flush has made its bits durable.
//
// The file is valid only if the header of the map names it (Generation) and it names the map: see
// Layer.openValidShared.
type sharedMap struct {
	file vfs.SharedFile
	mem  *vfs.Shared
	// reserved marks the pages of the map that have memory in the file. A word of it is changed
	// under the Bitmap's lock of the page, or before other goroutines have it.
	reserved []atomic.Uint64
	pages    atomic.Int64 // number of reserved pages
	broken   atomic.Bool  // a store to the mapping has faulted
}

// Words of the file's first page behind the identity.
const (
	sharedState   = 256 + iota // see below
	sharedChanged              // vfs.SharedFS.Changed of the map; 0: it is being changed
	sharedMTime                // Identity.MTime of the map then
	sharedData                 // vfs.SharedFS.Changed of the data when the head was opened
	sharedErrors               // writeBackErrors of the data's file system when the head was opened
	// 1: blocks whose bits may be here were discarded since the last flush
	sharedHoles
)

// States of a shared map.
const (
	stateMaking   = 0
	stateServing  = 1 // the bits are those of a process that lives, or has died
	stateDetached = 2 // its process has detached: all its syncs have succeeded
	stateFailed   = 3 // a sync has failed: the content of the page cache must not count as written
)

// maxKeptPages is the number of pages of a shared map that keep their memory when their bits are
// durable, because they will be written again: 256 KiB.
const maxKeptPages = 64

func sharedPath(dir string, id uuid.UUID, generation uint64) string {
	return filepath.Join(dir, id.String()+"-"+fmt.Sprintf("%016x", generation))
}

// createShared creates the shared map of a head, empty and not named by a header yet. data is the
// time of the last change of the data; writeBackErrors: see there.
func createShared(sfs vfs.SharedFS, path string, id *identity, data, writeBackErrors,
	mapPages uint64) (_ *sharedMap, err error) {
	f, err := sfs.OpenShared(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	s := &sharedMap{file: f, reserved: make([]atomic.Uint64, (mapPages+63)/64)}
	defer func() {
		if err != nil {
			_ = s.close()
			_ = sfs.Remove(path)
		}
	}()
	if err := f.Truncate(sharedSize(mapPages)); err != nil {
		return nil, err
	}
	if err := f.Reserve(0, MapPageSize); err != nil {
		return nil, err
	}
	if s.mem, err = f.MapShared(sharedWords(mapPages), true); err != nil {
		return nil, err
	}
	err = guarded(func() {
		id.store(s.mem.Words)
		s.setWord(sharedData, data)
		s.setWord(sharedErrors, writeBackErrors)
		s.setWord(sharedState, stateServing)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// openShared opens an existing shared map. The caller checks its content.
func openShared(sfs vfs.SharedFS, path string, mapPages uint64, write bool) (s *sharedMap,
	err error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := sfs.OpenShared(path, flag, 0)
	if err != nil {
		return nil, err
	}
	s = &sharedMap{file: f, reserved: make([]atomic.Uint64, (mapPages+63)/64)}
	size, err := f.Size()
	if err == nil && size != sharedSize(mapPages) {
		err = finding.New(ErrUnflushed, path, "length", sharedSize(mapPages), size,
			adviceUnflushed)
	}
	if err == nil {
		s.mem, err = f.MapShared(sharedWords(mapPages), write)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func sharedSize(mapPages uint64) int64   { return int64(1+mapPages) * MapPageSize }
func sharedWords(mapPages uint64) uint64 { return (1 + mapPages) * wordsPerPage }

// guarded runs f, which accesses a shared map, and turns a fault into an error: the kernel may be
// unable to read back a page that it has swapped out.
func guarded(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			a, ok := p.(interface{ Addr() uintptr })
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("%w at address %#x", errFault, a.Addr())
		}
	}()
	f()
	return nil
}

var errFault = errors.New("the memory of a file cannot be read or written")

func (s *sharedMap) word(i int) uint64       { return atomic.LoadUint64(&s.mem.Words[i]) }
func (s *sharedMap) setWord(i int, v uint64) { atomic.StoreUint64(&s.mem.Words[i], v) }

// page returns a page of the map in the file.
func (s *sharedMap) page(page uint64) []uint64 {
	return s.mem.Words[(1+page)*wordsPerPage : (2+page)*wordsPerPage]
}

// offset returns the offset of a page of the map in the file, in bytes.
func (s *sharedMap) offset(page uint64) int64 { return int64(1+page) * MapPageSize }

// reservedPage reports whether a page of the map has memory. The page's lock is held.
func (s *sharedMap) reservedPage(page uint64) bool {
	return s.reserved[page/64].Load()&(1<<(page%64)) != 0
}

// markReserved records that a page has memory. The page's lock is held, or no other goroutine has
// s.
func (s *sharedMap) markReserved(page uint64) {
	if !s.reservedPage(page) {
		s.reserved[page/64].Or(1 << (page % 64))
		s.pages.Add(1)
	}
}

// set sets bits of one page, which has memory. After an error the file is invalid for the next
// process.
func (s *sharedMap) set(page uint64, first, n uint64) error {
	err := guarded(func() {
		words := s.page(page)
		for end := first + n; first < end; {
			bit := first % 64
			run := min(64-bit, end-first)
			mask := (^uint64(0) >> (64 - run)) << bit
			if w := &words[first/64]; atomic.LoadUint64(w)&mask != mask {
				atomic.OrUint64(w, mask)
			}
			first += run
		}
	})
	if err != nil {
		s.invalidate()
	}
	return err
}

// release frees the memory of a page whose bits are durable. The page's lock is held. If that fails
// the page keeps its memory and its bits, which are still right.
func (s *sharedMap) release(page uint64) {
	if s.file.PunchHole(s.offset(page), MapPageSize) == nil {
		s.reserved[page/64].And(^(uint64(1) << (page % 64)))
		s.pages.Add(-1)
	}
}

// read calls visit for each page of the file that may have a bit.
func (s *sharedMap) read(mapPages uint64, visit func(page uint64, words []uint64) error) error {
	words := make([]uint64, wordsPerPage)
	for off, end := int64(MapPageSize), sharedSize(mapPages); off < end; {
		start, stop, err := s.file.NextData(off)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		off = max(off, start/MapPageSize*MapPageSize)
		for stop = min(stop, end); off < stop; off += MapPageSize {
			page := uint64(off/MapPageSize) - 1
			s.markReserved(page)
			if err := guarded(func() { copy(words, s.page(page)) }); err != nil {
				return err
			}
			if allZero(words) {
				continue
			}
			if err := visit(page, words); err != nil {
				return err
			}
		}
	}
	return nil
}

// setState sets the state that the next process finds.
func (s *sharedMap) setState(v uint64) error {
	return guarded(func() { s.setWord(sharedState, v) })
}

// clear clears bits of a page that are durable. The page's lock is held.
func (s *sharedMap) clear(page uint64, durable []uint64) error {
	return guarded(func() {
		words := s.page(page)
		for i, w := range durable {
			if have := atomic.LoadUint64(&words[i]); have&w != 0 {
				atomic.StoreUint64(&words[i], have&^w)
			}
		}
	})
}

// invalidate marks the file as invalid, by its state or, if that faults, by its length.
func (s *sharedMap) invalidate() {
	if s.broken.Swap(true) {
		return
	}
	if s.setState(stateFailed) != nil {
		// The header then names a file that is too short, which refuses the open.
		_ = s.file.Truncate(0)
	}
}

func (s *sharedMap) close() error {
	var errs []error
	if s.mem != nil {
		errs = append(errs, s.mem.Close())
	}
	return errors.Join(append(errs, s.file.Close())...)
}

// RemoveShared removes the shared map that the header of a layer names, for a layer that is no
// longer needed.
func RemoveShared(fsys vfs.FS, p Paths) error {
	h, err := ReadHeader(fsys, p.Map)
	if err != nil || h.Generation == 0 {
		return err
	}
	sfs, ok := fsys.(vfs.SharedFS)
	if !ok {
		return nil
	}
	f, err := fsys.OpenFile(p.Map, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return removeSharedOf(sfs, f, &h)
}

// removeSharedOf removes the shared map that h names, unless it belongs to another map file: to a
// copy of the layer, or to the original that the layer was copied from.
func removeSharedOf(sfs vfs.SharedFS, mapf vfs.File, h *Header) error {
	s, err := openSharedOf(sfs, mapf, h, false)
	if err != nil || s == nil {
		return err
	}
	return errors.Join(sfs.Remove(s.file.Name()), s.close())
}

// openSharedOf opens the shared map that h names; nil: there is none, or it belongs to another map.
// It belongs to mapf also if another file was in its place.
func openSharedOf(sfs vfs.SharedFS, mapf vfs.File, h *Header, write bool) (*sharedMap, error) {
	s, err := openShared(sfs, sharedPath(h.SharedDir, h.UUID, h.Generation), h.MapPages(), write)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found, err := s.identity()
	var id vfs.Identity
	if err == nil {
		id, err = mapf.Identity()
	}
	if err != nil || !found.Map.is(id) && found.Path != mapf.Name() {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// markMapChanging records that the map of a head that was not closed is about to be repaired, so
// that its shared map stays valid afterwards.
func markMapChanging(fsys vfs.FS, mapf vfs.File, h *Header) error {
	sfs, ok := fsys.(vfs.SharedFS)
	if !ok || h.Generation == 0 {
		return nil
	}
	s, err := openSharedOf(sfs, mapf, h, true)
	if err != nil || s == nil {
		return err
	}
	return errors.Join(guarded(func() { s.setWord(sharedChanged, 0) }), s.close())
}

// MayHaveUnflushed reports whether a process that has died in this run of the kernel may have left
// bits of a head that are not in its map.
func MayHaveUnflushed(fsys vfs.FS, h Header) bool {
	sfs, ok := fsys.(vfs.SharedFS)
	if !ok || h.Generation == 0 {
		return false
	}
	boot, err := sfs.Boot()
	return err != nil || newBootID(boot) == h.Boot
}

// SyncFailed reports whether a process that had the head open has failed to sync its data, so that
// a plain open drops what it has not flushed.
func SyncFailed(fsys vfs.FS, p Paths) bool {
	h, err := ReadHeader(fsys, p.Map)
	sfs, ok := fsys.(vfs.SharedFS)
	if err != nil || h.Generation == 0 || !ok {
		return false
	}
	f, err := fsys.OpenFile(p.Map, os.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	s, err := openSharedOf(sfs, f, &h, false)
	if err != nil || s == nil {
		return false
	}
	defer s.close()
	var state uint64
	return guarded(func() { state = s.word(sharedState) }) == nil && state == stateFailed
}
