package vhost

import (
	"log/slog"

	"cowblk/vhost/guest"
)

// Backend is the device behind a session. All calls come from the goroutine of the session, one at
// a time.
//
// A Backend owns a descriptor from the call that passes it, even if the call fails. A Backend that
// reads guest memory in one of these calls must survive a fault, because the front-end may have
// truncated the file.
type Backend interface {
	// Features returns the virtio bits that the device and its rings offer. The session handles
	// VHOST_USER_F_PROTOCOL_FEATURES; the bit is ignored here.
	Features() uint64
	// SetFeatures sets the bits that the front-end accepted, a subset of Features. It is called
	// only while no queue runs. An error refuses the message.
	SetFeatures(features uint64) error
	// Queues returns the largest number of queues, 1 to [MaxQueues].
	Queues() int
	// Config fills p, at most [MaxConfigSize] bytes, with the start of the device's configuration
	// space. Bytes beyond its end are zero.
	Config(p []byte) error
	// SetConfig writes p at offset bytes into the configuration space. The Backend ignores writes
	// to read-only fields. An error refuses the message.
	SetConfig(offset uint32, p []byte) error
	// SetMemory replaces the memory table, possibly under running queues. The session holds a
	// reference until the next call; the Backend acquires its own for as long as a request or a
	// ring uses the table. On error the Backend still uses the previous table.
	SetMemory(t *guest.Table) error
	// StartQueue starts to process a ring. Not called for a running queue.
	StartQueue(q Queue) error
	// StopQueue returns after the last request in flight of a running queue has completed, with the
	// ring's next avail index; a request that is marked in the queue's Inflight may be left there
	// for the next StartQueue. A queue that broke counts as running until it is stopped, and
	// stopping it is no error.
	StopQueue(i int) (base uint16, err error)
	// SetCall replaces the call eventfd of a running queue; -1 means none, the driver polls. The
	// Backend signals a new one once, because the driver may wait for a completion from before the
	// change.
	SetCall(i int, fd int)
	// SetErr replaces the error eventfd of a running queue; -1 means none.
	SetErr(i int, fd int)
	// SetStatus sets the virtio device status byte (VHOST_USER_SET_STATUS). Only front-ends that
	// negotiate STATUS send it. 0 is not a reset: QEMU sends it when the machine is merely stopped.
	SetStatus(s uint8)
	// NeedsReset reports whether the device needs a reset because a queue broke. GET_STATUS then
	// has DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2).
	NeedsReset() bool
	// Reset returns the device to its initial state; the session has stopped all queues. The memory
	// table stays.
	Reset()
}

// Queue describes a ring to a Backend.
type Queue struct {
	Index int
	// Num is the ring's size in descriptors, a power of two.
	Num uint16
	// Base is the next avail index to process.
	Base uint16
	// Desc, Avail and Used are addresses in the front-end's address space ("user addresses"),
	// aligned to 16, 4 and 4 bytes but otherwise unchecked.
	Desc, Avail, Used uint64
	// Kick, Call and Err are eventfds that the Backend closes. Kick -1: poll the ring; Call -1: the
	// driver polls; Err -1: none.
	Kick, Call, Err int
	// Inflight is the ring's region of the in-flight buffer, for the process that may follow this
	// one, in the layout of virtq.SplitConfig for rings of up to InflightNum descriptors; nil:
	// none. It stays mapped until StopQueue returns. The front-end also maps it and may truncate
	// its file, so its content is as untrusted as guest memory.
	Inflight    []byte
	InflightNum uint16
	// Features are the negotiated virtio bits.
	Features uint64
	// Memory is borrowed for the length of the call.
	Memory *guest.Table
}

// MaxQueues is the largest number of queues of a session: ring messages carry the index in eight
// bits.
const MaxQueues = 256

// Options configures a session. The zero value is usable.
type Options struct {
	// Log receives one debug line per message and one warning for the first message that was
	// refused with an answer; nil discards them.
	Log *slog.Logger
	// MaxQueueSize is the largest ring accepted, in descriptors; 0 means 1,024, the largest that
	// QEMU makes.
	MaxQueueSize uint16
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxQueueSize == 0 {
		o.MaxQueueSize = 1024
	}
	return o
}
