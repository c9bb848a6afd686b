package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"cowblk/cow/vfs"
)

// A guest outlives the process that serves its disk, and then reads what it has
// written, flushed or not. The data is in the kernel, but the bits of blocks that
// came to the head since the last flush are not in the map file: they must not be
// durable before the data is. So a head's map in memory is a shared mapping of a
// live file, which the kernel keeps when the process dies.
//
// A live file is worth nothing after a power cut, since the kernel writes it back
// whenever it likes: its header names this run of the kernel and the very file,
// and a file of which that is not true is ignored. It goes when the head is
// sealed or closed, and when a sync fails: what the kernel has dropped then must
// not be taken for written.

// LivePlace says where live files are.
type LivePlace struct {
	FS   vfs.Survivor
	Dir  string
	Boot string // of FS; read before the process is confined
}

const livePrefix = "live-"

func (p LivePlace) path(id uuid.UUID) string { return filepath.Join(p.Dir, livePrefix+id.String()) }

// Tidy removes the live files of all layers but those of keep, of which a process
// that was killed in the wrong moment may leave some.
func (p LivePlace) Tidy(keep []uuid.UUID) error {
	entries, err := p.FS.ReadDir(p.Dir)
	if err != nil {
		return err
	}
	var errs []error
next:
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), livePrefix)
		if !ok {
			continue
		}
		for _, id := range keep {
			if rest == id.String() {
				continue next
			}
		}
		errs = append(errs, p.FS.Remove(filepath.Join(p.Dir, e.Name())))
	}
	return errors.Join(errs...)
}

// Survive moves the map of a head that was opened for writing to its live file, and
// takes up the bits that it holds of a process that died. They are dirty: the next
// flush makes them durable, after the data. To be called before anybody else uses
// the bitmap. After an error the head works as before, and its unflushed bits die
// with the process.
func (l *Layer) Survive(p LivePlace) error {
	if err := l.writable(); err != nil {
		return err
	}
	f, err := l.openLive(p, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return fmt.Errorf("live map of %s: %w", l.paths.Map, err)
	}
	defer f.Close()
	if err := l.survive(p.FS, f); err != nil {
		return fmt.Errorf("live map %s: %w", f.Name(), err)
	}
	return nil
}

// Recall takes up, in memory only, the bits that a process which died has left of
// a layer that is not sealed and was opened for reading.
func (l *Layer) Recall(p LivePlace) error {
	f, err := l.openLive(p, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return l.distrust()
	}
	if err != nil {
		return fmt.Errorf("live map of %s: %w", l.paths.Map, err)
	}
	defer f.Close()
	shared, err := l.mapLive(f, false)
	if err != nil {
		return err
	}
	if shared == nil {
		return l.distrust()
	}
	defer shared.Close()
	return l.recall(shared.Words, l.bitmap)
}

func (l *Layer) openLive(p LivePlace, flags int) (*liveFile, error) {
	f, err := p.FS.OpenFile(p.path(l.header.UUID), flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	shared, ok := f.(vfs.SharedFile)
	if !ok {
		f.Close()
		return nil, vfs.ErrNotMappable
	}
	lf := &liveFile{SharedFile: shared}
	if lf.header, err = liveHeader(f, l.header.UUID, p.Boot); err != nil {
		f.Close()
		return nil, err
	}
	return lf, nil
}

// liveFile is an open live file, and what its header must be.
type liveFile struct {
	vfs.SharedFile
	header [SectorSize]byte
}

const liveMagic = "COWBLK\x00V"

// liveHeader is what must be at the start of a live file to be believed: magic,
// UUID, the file's device and inode, the run of the kernel; CRC-32C of that.
func liveHeader(f vfs.File, id uuid.UUID, boot string) (h [SectorSize]byte, err error) {
	file, err := f.Identity()
	if err != nil {
		return h, err
	}
	p := append(h[:0], liveMagic...)
	p = append(p, id[:]...)
	p = binary.LittleEndian.AppendUint64(p, file.Dev)
	p = binary.LittleEndian.AppendUint64(p, file.Inode)
	copy(h[len(p):len(p)+64], boot)
	binary.LittleEndian.PutUint32(h[SectorSize-4:], crc32.Checksum(h[:SectorSize-4], castagnoli()))
	return h, nil
}

// mapLive maps the words of a live file that can be believed; nil: it cannot.
func (l *Layer) mapLive(f *liveFile, write bool) (*vfs.Shared, error) {
	var found [SectorSize]byte
	if n, err := f.ReadAt(found[:], 0); n < len(found) {
		if isEOF(err) {
			err = nil
		}
		return nil, err
	}
	size, err := f.Size()
	if err != nil || found != f.header || size < l.header.MapSize() {
		return nil, err
	}
	return l.mapWords(f, write)
}

func (l *Layer) mapWords(f *liveFile, write bool) (*vfs.Shared, error) {
	return f.MapShared(MapOffset, l.header.MapPages()*wordsPerPage, write)
}

func (l *Layer) survive(fsys vfs.Survivor, f *liveFile) error {
	shared, err := l.mapLive(f, true)
	if err != nil {
		return err
	}
	known := shared != nil
	if !known {
		if err := l.distrust(); err != nil {
			return err
		}
		if err := f.Reserve(l.header.MapSize()); err != nil {
			return errors.Join(err, fsys.Remove(f.Name()))
		}
		if shared, err = l.mapWords(f, true); err != nil {
			return err
		}
	}
	own, err := newLiveName(fsys, f)
	if err != nil {
		return errors.Join(err, shared.Close())
	}
	b := newBitmap(l.header.Blocks(), shared.Words, shared.Close)
	if known {
		if err := l.recall(shared.Words, l.bitmap); err != nil {
			return err
		}
	}
	b.assume(l.bitmap)
	if !known {
		// The bits are there before the header says that they can be believed.
		if _, err := f.WriteAt(f.header[:], 0); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bitmap, l.live = b, own
	return nil
}

// recall merges words of a live file into b, after the checks that bits of a map
// must pass.
func (l *Layer) recall(words []uint64, b *Bitmap) error {
	end := uint64(0)
	for i := len(words) - 1; i >= 0; i-- {
		if words[i] != 0 {
			end = uint64(i)*64 + uint64(bits.Len64(words[i]))
			break
		}
	}
	if end > l.header.Blocks() {
		return fmt.Errorf("block %d is marked, expected blocks up to %d: %w", end-1, l.header.Blocks()-1, ErrDamaged)
	}
	if err := l.checkData(end); err != nil {
		return err
	}
	for page := uint64(0); page*blocksPerPage < end; page++ {
		p := DirtyPage{Page: page}
		have := b.words[page*wordsPerPage : (page+1)*wordsPerPage]
		for i, w := range words[page*wordsPerPage : (page+1)*wordsPerPage] {
			p.Words[i] = w &^ have[i]
		}
		if !allZero(p.Words[:]) {
			b.merge(&p)
		}
	}
	return nil
}

// liveName is the name of a live file and which file that is.
type liveName struct {
	fs   vfs.Survivor
	path string
	file vfs.Identity
}

func newLiveName(fsys vfs.Survivor, f vfs.File) (*liveName, error) {
	id, err := f.Identity()
	return &liveName{fsys, f.Name(), id}, err
}

// removeOwn removes the name if it still is the file's.
func (n *liveName) removeOwn() error {
	own, err := n.fs.Names(n.path, n.file)
	if err != nil || !own {
		return err
	}
	return n.fs.Remove(n.path)
}

// distrust is for a layer that was not closed in order and has no live file that
// can be believed: after a crash of the machine, when the kernel holds nothing of
// its data, or after a failed sync, when what the kernel holds may not be on the
// device although it counts as written. Nobody may read that, for no sync would
// ever write it.
func (l *Layer) distrust() error {
	if !l.unclean {
		return nil
	}
	return l.data.DropCache()
}

// dropLive removes the live file, unless another is in its place; the bitmap stays
// in memory.
func (l *Layer) dropLive() error {
	l.mu.Lock()
	live := l.live
	l.live = nil
	l.mu.Unlock()
	if live == nil {
		return nil
	}
	err := live.removeOwn()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Forget removes the live file of a new head that is not needed after all; the
// layer can still be used, or closed.
func (l *Layer) Forget() error { return l.dropLive() }
