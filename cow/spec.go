package cow

import (
	"log/slog"
	"time"

	"github.com/google/uuid"

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
	// Carried is what the process that Left the disk has handed over; nil: the
	// disk was closed, or its process died.
	Carried *Carried
	// Live is a directory, of this disk alone, for live files: the maps of heads
	// while they are open, which survive the death of the process (not of the
	// kernel), so that the next Open finds every write that has completed. Empty,
	// or FS is not a vfs.Survivor: after the death of the process it finds what
	// was flushed.
	Live string
	// LiveElsewhere are the directories of live files that lie in no other place: of
	// lower layers that are not sealed, because the process died that served them
	// as the head of another disk.
	LiveElsewhere map[uuid.UUID]string
	// FlushInterval is how long a write, discard or write-zeroes that has completed
	// waits for a flush round at most: if nobody has asked for a flush by then, the
	// disk flushes by itself. 0: DefaultFlushInterval; negative: any time; otherwise
	// MinFlushInterval to MaxFlushInterval.
	FlushInterval time.Duration
	// OnFailure is called once, from the disk's flusher, when a flush failed
	// and the disk has turned read-only. It must not block.
	OnFailure func(error)
}
