package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
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

// writtenBack reports whether what the page cache held of the data is still there, or on
// the device: nil.
func (l *Layer) writtenBack(sfs vfs.SharedFS, s *sharedMap) (dropped, err error) {
	if l.evicted, err = sfs.Evicted(l.data); err != nil || !l.evicted {
		return nil, err
	}
	id, err := s.identity()
	if err != nil {
		return nil, err
	}
	told, err := errorsTold(sfs, l.header.SharedDir, id.Data.Instance)
	if err != nil {
		return nil, err
	}
	var before uint64
	if err := guarded(func() { before = s.word(sharedErrors) }); err != nil {
		return nil, err
	}
	if told != before {
		return fmt.Errorf("%w, of which the process of another disk was told", ErrWriteBack), nil
	}
	// The inode may still be there, without pages.
	if err := l.data.Datasync(); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteBack, err), nil
	}
	if err := sfs.SyncFS(l.data); err != nil {
		return fmt.Errorf("%w: %w", ErrWriteBack, err), countError(sfs, l.header.SharedDir, id.Data.Instance)
	}
	return nil, nil
}

// errorsPath is the file that counts the errors of write-back of one mounted file system.
func errorsPath(dir, instance string) string {
	sum := sha256.Sum256([]byte(instance))
	return filepath.Join(dir, "errors-"+hex.EncodeToString(sum[:16]))
}

// errorsTold is how many errors of write-back processes were told by SyncFS that is
// called for heads of this directory.
func errorsTold(sfs vfs.SharedFS, dir, instance string) (uint64, error) {
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

// countError counts one more. Two at once may count as one, which is as good.
func countError(sfs vfs.SharedFS, dir, instance string) error {
	told, err := errorsTold(sfs, dir, instance)
	if err != nil {
		return err
	}
	f, err := sfs.OpenShared(errorsPath(dir, instance), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], told+1)
	_, err = f.WriteAt(p[:], 0)
	return errors.Join(err, f.Close())
}

// checkHoles looks at the data of blocks that a process has left unflushed, when its
// inode was evicted since: a hole was discarded by the guest, or is what a failed
// write-back has left, of whose error somebody else was told.
func (l *Layer) checkHoles(page uint64, words []uint64) error {
	size, err := l.data.Size()
	if err != nil {
		return err
	}
	for i, w := range words {
		for w != 0 {
			start := uint64(bits.TrailingZeros64(w))
			run := uint64(bits.TrailingZeros64(^(w >> start)))
			block := page*blocksPerPage + uint64(i)*64 + start
			if err := l.checkHole(block, run, size); err != nil {
				return err
			}
			if start+run == 64 {
				break
			}
			w &^= 1<<(start+run) - 1
		}
	}
	return nil
}

func (l *Layer) checkHole(block, n uint64, size int64) error {
	h := &l.header
	off := h.DataOffset + int64(block)*int64(h.BlockSize)
	end := h.DataOffset + min(int64(block+n)*int64(h.BlockSize), h.Size)
	start, stop, err := l.data.NextData(off)
	if err != nil && err != io.EOF {
		return err
	}
	if err == nil && start <= off && stop >= min(end, size) && end <= size {
		return nil
	}
	return &Fault{Path: l.paths.Data, What: fmt.Sprintf("data of block %d, or one of the %d behind it, that the guest has written or discarded and not flushed", block, n-1),
		Expected: "data, or what the page cache has had of it since", Found: "a hole, and nothing in the page cache: the guest has discarded it, or it was lost when it was written back",
		Advice: "if the log of the kernel has no I/O error of this file system, serve the disk with --keep-unflushed; else with --drop-unflushed, as after a power cut", Err: ErrUnflushed}
}
