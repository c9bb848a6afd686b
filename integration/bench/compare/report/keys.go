package report

import "fmt"

// Workloads, named as in the targets and plots.
const (
	ReadQD1     = "randread-qd1"
	ReadQD32    = "randread-qd32"
	WriteQD1    = "overwrite-qd1"
	WriteQD32   = "overwrite-qd32"
	FirstQD1    = "firstwrite-qd1"
	FirstQD32   = "firstwrite-qd32"
	WriteFlush  = "writeflush"
	SeqRead     = "seqread-qd8"
	ColdQD32    = "coldread-qd32"
	HotAlone    = "hot-alone"
	HotWithCold = "hot-beside-cold"

	// Reads of the area only, which is what overwrites use.
	OwnedQD1      = "owned-randread-qd1"
	OwnedQD32     = "owned-randread-qd32"
	OwnedSeq      = "owned-seqread-qd8"
	WriteThenRead = "write-then-read-qd1"
	FirstTouch    = "first-touch-qd32"
)

// Contenders other than stacks and chains.
const (
	RawRead     = "raw-read"       // cowblk's pass-through of the base image
	RawWrite    = "raw-write"      // cowblk's pass-through of a plain file, writable
	Sparse      = "raw-sparse"     // cowblk's pass-through of an empty sparse file
	QSDRead     = "qsd-raw-read"   // qemu-storage-daemon on the base image
	QSDWrite    = "qsd-raw-write"  // qemu-storage-daemon on a plain file of its own
	Memcpy      = "memcpy"         // copies from a mapping of the base image
	FioDirect   = "fio-direct"     // io_uring, O_DIRECT
	StackDirect = "stack-8-direct" // the same through cowblk
	FreshHead   = "fresh-head"     // a new clone
	FreshQcow2  = "fresh-qcow2"    // a new overlay
	SlowStack   = "slow-disk"      // a stack on a throttled disk
	QcowHead    = "qcow2-head"     // an overlay that owns all data
	FreshRaw    = "fresh-qsd-raw"  // qemu-storage-daemon on the base image, just started
	HeadRandom  = "head-random"    // a head written in random order, block by block
	HeadHalf    = "head-half"      // a head that owns half of the blocks, scattered
	QcowRandom  = "qcow2-random"   // an overlay written like HeadRandom
	QcowHalf    = "qcow2-half"     // an overlay written like HeadHalf
)

// Figures that are measured once.
const (
	IdleCPU      = "idle-cpu"       // per cent of one CPU
	ColdRate     = "cold-rate"      // reads per second
	ColdLatency  = "cold-latency"   // milliseconds
	IndexWorst   = "index-worst"    // bytes
	IndexFiles   = "index-files"    // bytes
	IndexClone   = "index-clone"    // bytes
	OpenTime     = "open-scattered" // seconds
	OpenFileTime = "open-files"     // seconds

	StormCowblk = "boot-storm-cowblk" // reads
	StormQcow2  = "boot-storm-qcow2"  // reads
)

// Stack is the key of cowblk's stack of some depth that reads its base.
func Stack(depth int) string { return fmt.Sprintf("stack-%d", depth) }

// Head is the key of cowblk's stack of some depth whose head owns the written blocks.
func Head(depth int) string { return fmt.Sprintf("head-%d", depth) }

// Chain is the key of a chain of qcow2 images that reads its base.
func Chain(depth int) string { return fmt.Sprintf("qcow2-%d", depth) }

// Scattered is the key of cowblk's stack of some depth whose blocks are distributed at random over
// all layers.
func Scattered(depth int) string { return fmt.Sprintf("scattered-%d", depth) }

// ScatteredDepths returns the depths of these stacks.
func ScatteredDepths() []int { return []int{8, 32} }

// Fio is the key of fio on the bare file with one of its engines.
func Fio(engine string) string { return "fio-" + engine }

// WorkloadTitle returns a workload's title.
func WorkloadTitle(workload string) string {
	for _, t := range workloads {
		if t.key == workload {
			return t.title
		}
	}
	return workload
}

// workloads in the order of the tables.
var workloads = []struct{ key, title string }{
	{ReadQD1, "random read 4 KiB, QD1, hot"},
	{ReadQD32, "random read 4 KiB, QD32, hot"},
	{WriteQD1, "random overwrite 4 KiB, QD1, write cache on"},
	{WriteQD32, "random overwrite 4 KiB, QD32, write cache on"},
	{FirstQD1, "first write 4 KiB, QD1"},
	{FirstQD32, "first write 4 KiB, QD32"},
	{WriteFlush, "overwrite 4 KiB + flush each, QD1"},
	{SeqRead, "sequential read 128 KiB, QD8, hot"},
	{OwnedQD1, "random read 4 KiB of the area, QD1, hot"},
	{OwnedQD32, "random read 4 KiB of the area, QD32, hot"},
	{OwnedSeq, "sequential read 128 KiB of the area, QD8, hot"},
	{WriteThenRead, "write 4 KiB, then read it back, QD1: pairs, latency of the read"},
	{FirstTouch, "each block of the area read once by a server just started, 4 KiB, QD32, cached"},
	{ColdQD32, "random read 4 KiB, QD32, O_DIRECT"},
	{HotAlone, "hot reads 4 KiB at a constant rate, alone"},
	{HotWithCold, "hot reads 4 KiB at a constant rate, beside requests of the queue that wait for a slow disk"},
}
