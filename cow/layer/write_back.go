package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"cowblk/cow/vfs"
)

// After a process was killed nobody may have its data open, and the kernel may fail to
// write it back. As long as the inode is in memory, the next process is told by its
// first sync. Once it is evicted the content is that of the device, and only the file
// system knows of an error, which it tells to one process: to that of one disk of many.
// So those that were told count the errors, in a file beside the shared maps.

// ErrWriteBack says that the device has lost what was not flushed.
var ErrWriteBack = errors.New("it was lost when it was written back")

// checkWriteBack reports whether what the page cache held of the data is still there, or on
// the device: nil. After an error of write-back the pages read as they were written until
// they are reclaimed, and then as the device has them.
func (l *Layer) checkWriteBack(sfs vfs.SharedFS, s *sharedMap, policy Unflushed) (dropped, err error) {
	evicted, err := sfs.Evicted(l.data)
	if err != nil {
		return nil, err
	}
	if evicted {
		if dropped, err := l.checkFileSystemErrors(sfs, s); dropped != nil || err != nil {
			return dropped, err
		}
	}
	return l.checkPages(sfs, s, evicted, policy)
}

// checkFileSystemErrors asks for errors of which the inode may know no more.
func (l *Layer) checkFileSystemErrors(sfs vfs.SharedFS, s *sharedMap) (dropped, err error) {
	id, err := s.identity()
	if err != nil {
		return nil, err
	}
	errorCount, err := writeBackErrors(sfs, l.header.SharedDir, id.Data.Instance)
	if err != nil {
		return nil, err
	}
	var oldCount uint64
	if err := guarded(func() { oldCount = s.word(sharedErrors) }); err != nil {
		return nil, err
	}
	if errorCount != oldCount {
		return fmt.Errorf("%w, of which the process of another disk was told", ErrWriteBack), nil
	}
	// The inode may still be there, without pages.
	if err := l.data.Datasync(); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteBack, err), nil
	}
	if err := sfs.SyncFS(l.data); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteBack, err), addWriteBackError(sfs, l.header.SharedDir, id.Data.Instance)
	}
	return nil, nil
}

// checkPages looks at the blocks that were not flushed. Those of which the page cache has
// not all were written back: a sync tells whether that has succeeded, unless somebody
// else was told, who synced the file before. Then a hole tells, as far as the guest has
// not discarded any.
func (l *Layer) checkPages(sfs vfs.SharedFS, s *sharedMap, synced bool, policy Unflushed) (dropped, err error) {
	var holes bool
	if err := guarded(func() { holes = s.word(sharedHoles) != 0 }); err != nil {
		return nil, err
	}
	size, err := l.data.Size()
	if err != nil {
		return nil, err
	}
	err = s.read(l.header.MapPages(), func(page uint64, words []uint64) error {
		return eachBitRun(words, func(first, n uint64) error {
			block := page*blocksPerPage + first
			if block >= l.header.Blocks() {
				return nil // refused when it is merged
			}
			off := l.header.DataOffset + int64(block)*int64(l.header.BlockSize)
			end := l.header.DataOffset + min(int64(block+n)*int64(l.header.BlockSize), l.header.Size)
			resident, err := sfs.Resident(l.data, off, end-off)
			if err != nil || resident {
				return err
			}
			if !synced {
				synced = true
				if err := l.data.Datasync(); err != nil {
					dropped = fmt.Errorf("%w: %w", ErrWriteBack, err)
					return dropped
				}
			}
			if holes || policy == KeepUnflushed {
				return nil
			}
			return l.checkHole(block, n, off, end, size)
		})
	})
	if dropped != nil {
		return dropped, nil
	}
	return nil, err
}

// errorsPath is the file that counts the errors of write-back of one mounted file system.
func errorsPath(dir, instance string) string {
	sum := sha256.Sum256([]byte(instance))
	return filepath.Join(dir, "errors-"+hex.EncodeToString(sum[:16]))
}

// writeBackErrors is how many errors of write-back processes were told by SyncFS that is
// called for heads of this directory.
func writeBackErrors(sfs vfs.SharedFS, dir, instance string) (uint64, error) {
	f, err := sfs.OpenShared(errorsPath(dir, instance), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var p [8]byte
	if _, err := f.ReadAt(p[:], 0); err != nil && err != io.EOF {
		return 0, err
	}
	return binary.LittleEndian.Uint64(p[:]), nil
}

// resetErrorCount says that errors of write-back which were told before concern nothing of
// the head: it was found sound, and its next sync tells of those that were not.
func (l *Layer) resetErrorCount() error {
	id, err := l.shared.identity()
	if err != nil {
		return err
	}
	errorCount, err := writeBackErrors(l.fs.(vfs.SharedFS), l.header.SharedDir, id.Data.Instance)
	if err != nil {
		return err
	}
	return guarded(func() { l.shared.setWord(sharedErrors, errorCount) })
}

// addWriteBackError counts one more. Two at once may count as one, which is as good.
func addWriteBackError(sfs vfs.SharedFS, dir, instance string) error {
	errorCount, err := writeBackErrors(sfs, dir, instance)
	if err != nil {
		return err
	}
	f, err := sfs.OpenShared(errorsPath(dir, instance), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], errorCount+1)
	_, err = f.WriteAt(p[:], 0)
	return errors.Join(err, f.Close())
}

// checkHole looks at the data of blocks that a process has left unflushed, and that were
// reclaimed since, from byte off to byte end of a file of the given size.
func (l *Layer) checkHole(block, n uint64, off, end, size int64) error {
	start, stop, err := l.data.NextData(off)
	if err != nil && err != io.EOF {
		return err
	}
	if err == nil && start <= off && stop >= end && end <= size {
		return nil
	}
	return &Fault{Path: l.paths.Data, What: fmt.Sprintf("data of %d blocks from %d on, which the guest has written and not flushed", n, block),
		Expected: "data", Found: "a hole, which is what an error of write-back leaves, of which another program was told",
		Advice: "if the log of the kernel has no I/O error of this file system, serve the disk with --keep-unflushed; else with --drop-unflushed, as after a power cut", Err: ErrUnflushed}
}
