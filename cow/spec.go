package cow

import (
	"log/slog"
	"time"

	"cowblk/cow/layer"
	"cowblk/cow/vfs"
)

// Spec describes a stack to open: base, layers and whether its top is writable.
type Spec struct {
	// Base is the immutable bottom; nil means that blocks without an owner
	// read as zeros.
	Base *BaseSpec
	// Layers are the stack's layers, oldest first. The last one is the head
	// and is opened for writing, unless ReadOnly or Raw.
	Layers []layer.Paths
	// ReadOnly opens every layer for reading, the last one too, be it a head
	// or sealed (a tag). Without layers the disk is the base itself.
	ReadOnly bool
	// Raw writes to the base itself, without layers: a pass-through of one raw
	// file or block device. It cannot be promoted.
	Raw bool
}

// BaseSpec names a base image or block device and says what it must be.
type BaseSpec struct {
	Path string
	// Offset is the byte of the file at which the disk's byte 0 lies.
	Offset int64
	// Size is how many bytes from Offset on belong to the base; 0 means up to
	// the end of the file. It may be smaller or larger than the disk: what
	// lies beyond it reads as zeros, what the disk does not reach is unused.
	Size int64
	// Fingerprint, unless zero, must equal the one computed from the base.
	// The fingerprint in the layers' headers must equal it in any case.
	Fingerprint layer.Fingerprint
	// Identity, unless zero, must have the size and modification time that
	// the file has now. Comparing device and inode is left to the caller:
	// copying an image elsewhere is no change of it.
	Identity vfs.Identity
}

// Options of Open. The zero value is usable.
type Options struct {
	// FS opens every file of the stack; nil means the operating system's.
	FS vfs.FS
	// Log receives one line per event that a person would want; nil discards.
	Log *slog.Logger
	// Direct reads and writes the guest's data past the page cache (O_DIRECT):
	// cache=none of other block layers. Requests that are not aligned as the
	// file system wants them go through it nevertheless.
	Direct bool
	// SharedDir is a directory in memory (vfs.SharedFS) for the shared maps of heads:
	// what the next Open needs to find every write that has completed, if this process
	// dies and the kernel lives on. Empty: writes that set bits complete when those are
	// durable, unless LoseUnflushed is set. It is what all opens of a store agree on.
	SharedDir string
	// LoseUnflushed lets writes complete whose bits nobody would know after the death
	// of this process: what the guest has not flushed is lost then, under its hands.
	LoseUnflushed bool
	// Unflushed is what to do about the unflushed writes of a process that died.
	Unflushed layer.Unflushed
	// ForceShare opens a base although somebody else holds a lock on it that whoever may read the file can
	// take: QEMU's image locks, flock. It must not change nevertheless. A lock on its bytes that only a writer
	// can have (vfs.LockExtents) refuses it still.
	ForceShare bool
	// FlushInterval is how long a write, discard or write-zeroes that has completed
	// waits for a flush round at most: if nobody has asked for a flush by then, the
	// disk flushes by itself. 0: DefaultFlushInterval; negative: any time; otherwise
	// MinFlushInterval to MaxFlushInterval.
	FlushInterval time.Duration
	// OnNoSpace is called when the head's map or header finds no space (ENOSPC, EDQUOT). True: room
	// was made, try again; it must say false in the end. closing says that the disk is being closed, and what
	// is not written now stays with the shared map alone. It is called by any goroutine. Nil: there is none.
	OnNoSpace func(err error, closing bool) bool
	// OnFailure is called once, from the disk's flusher, when a flush failed
	// and the disk has turned read-only. It must not block.
	OnFailure func(error)
}
