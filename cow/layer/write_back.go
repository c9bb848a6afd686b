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

	"cowblk/cow/finding"
	"cowblk/cow/vfs"
)

// After a process was killed its data may be open nowhere, and the kernel may fail to write it
// back. While the inode is in memory, the first sync of the next process reports the error. Once
// the inode is evicted, its content is that of the device, and only the file system knows of the
// error, which it reports once: to the process of one of many disks. So a process that gets such an
// error counts it, in a file beside the shared maps.

// ErrWriteBack says that write-back has lost unflushed data.
var ErrWriteBack = errors.New("the write-back failed")

// checkWriteBack returns nil if the data that the page cache held is still there, or on the device.
// After a write-back error the pages keep their content until they are reclaimed, and then have the
// content of the device.
func (l *Layer) checkWriteBack(sfs vfs.SharedFS, s *sharedMap, policy Unflushed) (dropped,
	err error) {
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

// checkFileSystemErrors looks for errors that an evicted inode does not report any more.
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
		return fmt.Errorf("%w: the kernel reported it to the process of another disk",
			ErrWriteBack), nil
	}
	// The inode may still be in memory, without pages.
	if err := l.data.Datasync(); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteBack, err), nil
	}
	if err := sfs.SyncFS(l.data); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteBack, err), addWriteBackError(sfs, l.header.SharedDir,
			id.Data.Instance)
	}
	return nil, nil
}

// checkPages checks the blocks that were not flushed. Blocks that are not wholly in the page cache
// were written back. A sync reports whether that succeeded, unless another process has synced the
// file and got the report. In that case a hole shows the loss, unless the guest has discarded
// blocks.
func (l *Layer) checkPages(sfs vfs.SharedFS, s *sharedMap, synced bool, policy Unflushed) (dropped,
	err error) {
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
			end := l.header.DataOffset + min(int64(block+n)*int64(l.header.BlockSize),
				l.header.Size)
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

// errorsPath returns the file that counts the write-back errors of one mounted file system.
func errorsPath(dir, instance string) string {
	sum := sha256.Sum256([]byte(instance))
	return filepath.Join(dir, "errors-"+hex.EncodeToString(sum[:16]))
}

// writeBackErrors returns the number of write-back errors that SyncFS has reported for heads of
// this directory.
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

// resetErrorCount records the present count in the shared map: the head was found intact, so
// earlier errors do not concern it, and its next sync reports those that do.
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

// addWriteBackError increments the count. Two at once may count as one, which is enough.
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

// checkHole checks the data of unflushed blocks whose pages were reclaimed, from byte off to byte
// end of a file of the given size, for holes.
func (l *Layer) checkHole(block, n uint64, off, end, size int64) error {
	start, stop, err := l.data.NextData(off)
	if err != nil && err != io.EOF {
		return err
	}
	if err == nil && start <= off && stop >= end && end <= size {
		return nil
	}
	return finding.New(ErrUnflushed, l.paths.Data,
		fmt.Sprintf("data of %d blocks from %d on, which the guest has written and not flushed", n,
			block),
		"data",
		"a hole, as a write-back error leaves it that the kernel reported to another program",
		"if the kernel log has no I/O error of this file system, serve the disk with --keep-unflushed; else with --drop-unflushed, as after a power cut")
}
