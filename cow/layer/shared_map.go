package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync/atomic"

	"github.com/google/uuid"

	"cowblk/cow/vfs"
)

// sharedMap is a file in memory (tmpfs) with the bits of a head that are not durable
// in its map: what the next process needs if this one dies under a living guest. The
// kernel has the data of those blocks, and nobody else knows of the bits, for they
// must not be in the map before the data is durable.
//
// Nothing is ever read from it by the process that writes it: the bitmap in memory
// is private and alone says who owns a block. The file has the pages of the map, one
// page further on, behind a page of its own (see identity and the words below). A
// page takes memory from its first bit on, and is given back when a flush has made
// its bits durable.
//
// It is believed only if the header of the map names it (Generation), and it names
// the map: see Layer.believe.
type sharedMap struct {
	file vfs.SharedFile
	mem  *vfs.Shared
	// reserved marks the pages of the map that have memory in the file. A word of
	// it is changed under the Bitmap's lock of the page, or before anybody else has it.
	reserved []atomic.Uint64
	pages    atomic.Int64 // how many that are
	broken   atomic.Bool  // a store to the mapping has faulted
}

// Words of the file's first page behind its identity.
const (
	sharedState   = 256 + iota // see below
	sharedChanged              // vfs.SharedFS.Changed of the map; 0: it is being changed
	sharedMTime                // Identity.MTime of the map then
	sharedData                 // vfs.SharedFS.Changed of the data when the head was opened
	sharedErrors               // errorsTold of the data's file system when the head was opened
	sharedHoles                // 1: the guest has discarded blocks since the last flush, of which bits may be here
)

// States of a shared map.
const (
	stateMaking   = 0
	stateServing  = 1 // the bits are those of a process that lives, or has died
	stateDetached = 2 // of one that has left the head in order: all its syncs have succeeded
	stateFailed   = 3 // a sync has failed: what the page cache holds must not be taken for written
)

// maxKeptPages is how many pages of a shared map keep their memory when their bits are
// durable, since they will be written again: 256 KiB.
const maxKeptPages = 64

func sharedPath(dir string, id uuid.UUID, generation uint64) string {
	return filepath.Join(dir, id.String()+"-"+fmt.Sprintf("%016x", generation))
}

// createShared makes the shared map of a head, empty and not yet named by anybody. data
// is when the data was changed last, errorsTold see there.
func createShared(sfs vfs.SharedFS, path string, id *identity, data, writeBackErrors, mapPages uint64) (_ *sharedMap, err error) {
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

// openShared opens a shared map that exists. What it says is to be checked.
func openShared(sfs vfs.SharedFS, path string, mapPages uint64, write bool) (s *sharedMap, err error) {
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
		err = &Fault{Path: path, What: "length", Expected: strconv.FormatInt(sharedSize(mapPages), 10), Found: strconv.FormatInt(size, 10), Advice: adviceUnflushed, Err: ErrUnflushed}
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

// guarded runs f, which touches a shared map, and makes an error of a fault: the
// kernel may be unable to bring a page back that it has swapped out.
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

// page is a page of the map in the file.
func (s *sharedMap) page(page uint64) []uint64 {
	return s.mem.Words[(1+page)*wordsPerPage : (2+page)*wordsPerPage]
}

// offset is where a page of the map lies in the file, in bytes.
func (s *sharedMap) offset(page uint64) int64 { return int64(1+page) * MapPageSize }

// reservedPage reports whether a page of the map has memory. The page's lock is held.
func (s *sharedMap) reservedPage(page uint64) bool {
	return s.reserved[page/64].Load()&(1<<(page%64)) != 0
}

// markReserved records that a page has memory. The page's lock is held, or nobody else has s.
func (s *sharedMap) markReserved(page uint64) {
	if !s.reservedPage(page) {
		s.reserved[page/64].Or(1 << (page % 64))
		s.pages.Add(1)
	}
}

// set sets bits of one page, which has memory. After an error the file is of no use
// to the next process any more.
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

// release gives the memory of a page back whose bits are durable. The page's lock is
// held. What fails keeps its memory, and its bits, which are true all the same.
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

// setState says what the next process is to make of the file.
func (s *sharedMap) setState(v uint64) error {
	return guarded(func() { s.setWord(sharedState, v) })
}

// clear takes bits out of a page that are durable. The page's lock is held.
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

// invalidate says, as well as it can be said, that the file is not to be believed.
func (s *sharedMap) invalidate() {
	if s.broken.Swap(true) {
		return
	}
	if s.setState(stateFailed) != nil {
		// The header names a file that is too short then, which refuses the open.
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

// RemoveShared removes the shared map that the header of a layer names, of a layer
// that nobody needs any more.
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

// removeSharedOf removes the shared map that h names, unless that says it is the map of
// another file: a copy of the layer's, or what the layer was copied from.
func removeSharedOf(sfs vfs.SharedFS, mapf vfs.File, h *Header) error {
	s, err := openSharedOf(sfs, mapf, h, false)
	if err != nil || s == nil {
		return err
	}
	return errors.Join(sfs.Remove(s.file.Name()), s.close())
}

// openSharedOf opens the shared map that h names; nil: there is none, or it is of another map.
// It is of this one, too, if another file was in its place.
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

// markMapChanging says that the map of a head that was not closed is about to be repaired, so
// that what a process has left of it is believed afterwards, too.
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

// MayHaveUnflushed reports whether a process that has died in this run of the kernel may have
// left bits of a head that are not in its map.
func MayHaveUnflushed(fsys vfs.FS, h Header) bool {
	sfs, ok := fsys.(vfs.SharedFS)
	if !ok || h.Generation == 0 {
		return false
	}
	boot, err := sfs.Boot()
	return err != nil || newBootID(boot) == h.Boot
}
