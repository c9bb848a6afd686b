package cow

import (
	"log/slog"
	"time"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Spec describes a stack to open: base, layers and whether its top is writable.
type Spec struct {
	// Base is the immutable bottom; nil: blocks without an owner read as zeros.
	Base *BaseSpec
	// Layers are the stack's layers, oldest first. The last is the head and is opened for writing,
	// unless ReadOnly or Raw is set.
	Layers []layer.Paths
	// ReadOnly opens every layer for reading, also the last one, whether it is a head or sealed (a
	// tag). Without layers the disk is the base itself.
	ReadOnly bool
	// Raw writes to the base itself, without layers: a pass-through of one raw file or block
	// device. It cannot be promoted.
	Raw bool
}

// BaseSpec names a base, a file or block device, and what is expected of it.
type BaseSpec struct {
	Path string
	// Offset is the byte of the file of the disk's byte 0.
	Offset int64
	// Size is the number of bytes from Offset on that belong to the base; 0: up to the end of the
	// file. It may be smaller or larger than the disk: the disk reads as zeros beyond it, and the
	// rest of a larger base is unused.
	Size int64
	// Fingerprint, unless zero, must equal that of the base. The fingerprint in the layers' headers
	// must equal it in any case.
	Fingerprint layer.Fingerprint
	// Identity, unless zero, must have the size and modification time of the file. The caller
	// compares device and inode: copying an image elsewhere does not change it.
	Identity vfs.Identity
}

// Options of Open. The zero value is usable.
type Options struct {
	// FS opens every file of the stack; nil: the operating system's.
	FS vfs.FS
	// Log receives one line per event of interest to a person; nil: none.
	Log *slog.Logger
	// Direct reads and writes the guest's data past the page cache (O_DIRECT), as cache=none of
	// QEMU. Requests that do not meet the file system's alignment go through the page cache.
	Direct bool
	// SharedDir is a directory in memory (vfs.SharedFS) for the shared maps of heads: with them the
	// next Open finds every completed write if this process dies and the kernel lives on. Empty:
	// writes that set bits complete when the bits are durable, unless LoseUnflushed is set. All
	// opens of a store use the same directory.
	SharedDir string
	// LoseUnflushed lets writes complete whose bits are lost if this process dies: unflushed writes
	// of a guest that lives on disappear then.
	LoseUnflushed bool
	// Unflushed is what Open does about the unflushed writes of a process that died.
	Unflushed layer.Unflushed
	// ForceShare opens a base on which another process holds a lock that any reader of the file can
	// take: QEMU's image locks, flock. The base must not change nevertheless. A lock on its bytes
	// that only a writer can hold (vfs.LockExtents) still refuses it.
	ForceShare bool
	// FlushInterval is the longest time for which a completed write, discard or write-zeroes waits
	// for a flush round: without a flush of the guest by then, the disk flushes by itself. 0:
	// DefaultFlushInterval; negative: no limit; otherwise MinFlushInterval to MaxFlushInterval.
	FlushInterval time.Duration
	// OnNoSpace is called when a write of the head's map or header finds no space (ENOSPC, EDQUOT).
	// True: space was freed, try again; it must return false in the end. closing: the disk is being
	// closed, and what is not written now stays in the shared map alone. Any goroutine may call it.
	// Nil: no retries.
	OnNoSpace func(err error, closing bool) bool
	// OnFailure is called once, on the flusher's goroutine, when a flush has failed and the disk
	// has turned read-only. It must not block.
	OnFailure func(error)
}
