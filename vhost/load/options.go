package load

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cowblk/vhost/frontend"
)

// ErrOptions reports an invalid load. The errors that wrap it have their own texts.
var ErrOptions = errors.New("bad load options")

type optionsError string

func (e optionsError) Error() string { return string(e) }

func (e optionsError) Is(target error) bool { return target == ErrOptions }

func badOptions(format string, args ...any) error {
	return optionsError(fmt.Sprintf(format, args...))
}

// The patterns, as fio calls them.
const (
	RandRead  = "randread"
	RandWrite = "randwrite"
	Read      = "read"
	Write     = "write"
	RandRW    = "randrw"
)

// Patterns are the values of Options.RW.
func Patterns() []string { return []string{RandRead, RandWrite, Read, Write, RandRW} }

// Options describes a load on one back-end. The zero value, with a Socket, reads 4 KiB at random
// for 5 s, one request at a time.
type Options struct {
	Socket string `json:"socket,omitempty"` // of the back-end
	Null   bool   `json:"null,omitempty"`   // instead of Socket: a back-end in this process without a disk

	RW          string `json:"rw"`                     // one of Patterns; empty: randread
	ReadPercent int    `json:"read_percent,omitempty"` // of randrw, 1 to 99; 0: 50
	BlockSize   int    `json:"block_size"`             // bytes, a multiple of 512; 0: 4096
	QueueDepth  int    `json:"queue_depth"`            // requests in flight on each queue; 0: 1
	Queues      int    `json:"queues"`                 // 0: 1

	// Duration is how long to count. 0: 5 s; with FirstWrite, until each block has been written.
	Duration time.Duration `json:"duration_ns"`
	Warmup   time.Duration `json:"warmup_ns"` // load before counting

	// Size and Offset select the part of the disk that is used, in bytes; Size 0: all that follows
	// Offset. An incomplete block at the end is not used.
	Size   int64 `json:"size"`
	Offset int64 `json:"offset"`

	// Poll makes the driver spin with interrupts suppressed; otherwise it sleeps on the call
	// eventfd, as a guest does.
	Poll bool `json:"poll"`
	// FsyncEvery makes each of the QueueDepth requesters flush after this number of its writes, and
	// wait for the flush; 0: never.
	FsyncEvery int `json:"fsync_every,omitempty"`
	// WCE sets the write cache through the configuration space; nil leaves it.
	WCE *bool `json:"wce,omitempty"`
	// FirstWrite writes each block once, in random order (in order with write), and ends when all
	// have been written, or with Duration.
	FirstWrite bool `json:"first_write,omitempty"`
	// Seed selects the sequence of requests. 0 is a seed like any other.
	Seed uint64 `json:"seed"`

	Hugepages bool           `json:"hugepages,omitempty"` // guest memory from 2 MiB pages; SPDK needs them
	Style     frontend.Style `json:"style"`               // the front-end's habits
	Timeout   time.Duration  `json:"timeout_ns"`          // of each wait for the back-end; 0: 30 s
	// BackendPID is the process whose CPU time is measured; 0: the process that listens on Socket.
	BackendPID int `json:"-"`
}

// Writes reports whether the load changes the disk.
func (o Options) Writes() bool { return o.RW != RandRead && o.RW != Read && o.RW != "" }

func (o Options) withDefaults() (Options, error) {
	if o.RW == "" {
		o.RW = RandRead
	}
	if o.RW == RandRW && o.ReadPercent == 0 {
		o.ReadPercent = 50
	}
	o.BlockSize = orDefault(o.BlockSize, 4096)
	o.QueueDepth = orDefault(o.QueueDepth, 1)
	o.Queues = orDefault(o.Queues, 1)
	o.Timeout = orDefault(o.Timeout, 30*time.Second)
	if !o.FirstWrite {
		o.Duration = orDefault(o.Duration, 5*time.Second)
	}
	return o, o.check()
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// maxDepth is the number of requests of three descriptors in a ring of the usual maximum, 1,024.
// Indirect descriptors would allow more, but not with every back-end.
const maxDepth = maxRing / 3

const maxRing = 1024

func (o Options) check() error {
	switch {
	case (o.Socket == "") != o.Null:
		return badOptions("expected either a socket or the null back-end")
	case !slices.Contains(Patterns(), o.RW):
		return badOptions("pattern %q, expected one of %s", o.RW, strings.Join(Patterns(), ", "))
	case o.RW == RandRW && (o.ReadPercent < 1 || o.ReadPercent > 99):
		return badOptions("%d %% of reads, expected 1 to 99", o.ReadPercent)
	case o.RW != RandRW && o.ReadPercent != 0:
		return badOptions("a percentage of reads goes with %s only", RandRW)
	case o.BlockSize < 512 || o.BlockSize%512 != 0 || o.BlockSize > maxBlock:
		return badOptions("block size %d, expected a multiple of 512 up to %d", o.BlockSize,
			maxBlock)
	case o.QueueDepth < 1 || o.QueueDepth > maxDepth:
		return badOptions("queue depth %d, expected 1 to %d", o.QueueDepth, maxDepth)
	case o.Queues < 1 || o.Queues > maxQueues:
		return badOptions("%d queues, expected 1 to %d", o.Queues, maxQueues)
	case o.Duration < 0 || o.Warmup < 0 || o.Timeout < 0:
		return badOptions("negative time")
	case o.Size < 0 || o.Offset < 0 || o.Offset%512 != 0:
		return badOptions("size %d at offset %d, expected positive numbers, the offset a multiple of 512", o.Size, o.Offset)
	case o.FsyncEvery < 0 || o.FsyncEvery > 0 && !o.Writes():
		return badOptions("a flush every %d writes, expected a positive number and a pattern that writes", o.FsyncEvery)
	case o.FirstWrite && o.RW != RandWrite && o.RW != Write:
		return badOptions("first writes go with %s and %s only", RandWrite, Write)
	}
	return nil
}

const (
	maxBlock  = 16 << 20 // bytes
	maxQueues = 256
)
