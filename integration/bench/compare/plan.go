package compare

import (
	"context"
	"fmt"
	"time"

	"cowblk/integration/bench/compare/report"
	"cowblk/integration/harness"
	"cowblk/vhost/load"
)

// task is one contender under one workload; measure takes one sample.
type task struct {
	contender, label, workload string
	quick                      bool // part of the short run
	measure                    func(ctx context.Context, round int) (report.Sample, error)
}

// contender is a server that runs all the time.
type contender struct {
	key, label string
	quick      bool
}

// stackLabel returns the display name of a stack.
func stackLabel(n int) string { return fmt.Sprintf("cowblk, depth %d", n) }

// readers returns the contenders that read the base image.
func readers() (all []contender) {
	for _, n := range report.Depths() {
		all = append(all, contender{report.Stack(n), stackLabel(n), true})
	}
	all = append(all, contender{report.RawRead, "cowblk pass-through", true},
		contender{report.QSDRead, "qemu raw", true})
	for _, n := range chainDepths {
		all = append(all, contender{report.Chain(n), fmt.Sprintf("qemu qcow2, depth %d", n),
			n == 8})
	}
	return all
}

// writers returns the contenders that own the blocks that they overwrite.
func writers() (all []contender) {
	for _, n := range headDepths {
		all = append(all, contender{report.Head(n), stackLabel(n), n != 128})
	}
	return append(all, contender{report.RawWrite, "cowblk pass-through", true},
		contender{report.QSDWrite, "qemu raw", true}, contender{report.QcowHead, "qemu qcow2",
			true})
}

// tasks returns the plan of one round; contenders of a workload follow each other.
func (s *site) tasks() (all []task) {
	read := load.Options{RW: load.RandRead, Size: s.size}
	write := load.Options{RW: load.RandWrite, Size: s.area}
	sequential := load.Options{RW: load.Read, BlockSize: 128 << 10, QueueDepth: 8, Size: s.size}
	synced := write
	synced.FsyncEvery = 1
	for _, qd := range []int{1, 32} {
		read.QueueDepth, write.QueueDepth = qd, qd
		key := map[int]string{1: report.ReadQD1, 32: report.ReadQD32}[qd]
		for _, c := range readers() {
			all = append(all, s.served(c, key, read))
		}
		all = append(all, s.fioReads(qd, key)...)
		all = append(all, task{report.Memcpy, "memcpy from a mapping", key, false, s.copyRandom})
		key = map[int]string{1: report.WriteQD1, 32: report.WriteQD32}[qd]
		for _, c := range writers() {
			all = append(all, s.served(c, key, write))
		}
	}
	for _, qd := range []int{1, 32} {
		all = append(all, s.firstWrites(qd)...)
	}
	for _, c := range writers() {
		c.quick = c.key == report.Head(8) || c.key == report.QSDWrite
		all = append(all, s.served(c, report.WriteFlush, synced))
	}
	for _, c := range readers() {
		c.quick = c.key == report.Stack(8)
		if c.key != report.Chain(32) {
			all = append(all, s.served(c, report.SeqRead, sequential))
		}
	}
	all = append(all, task{report.Memcpy, "memcpy from a mapping", report.SeqRead, true,
		s.copySequential})
	all = append(all, s.ownedReads()...)
	all = append(append(all, s.writeThenRead()), s.firstTouch()...)
	all = append(all, s.coldReads()...)
	return append(all, s.hotReads()...)
}

// warmup is the duration of the warm-up, as a share of a sample.
const warmup = 0.1

// served returns a task that loads a running server.
func (s *site) served(c contender, workload string, o load.Options) task {
	return task{contender: c.key, label: c.label, workload: workload, quick: c.quick,
		measure: func(ctx context.Context, round int) (report.Sample, error) {
			b := s.servers[c.key]
			if b == nil {
				return report.Sample{}, fmt.Errorf("%s does not run", c.key)
			}
			o := o
			o.Seed = uint64(round)
			o.Duration, o.Warmup = s.time, time.Duration(float64(s.time)*warmup)
			sample, err := drive(ctx, b.Socket, o)
			if err == nil && o.Writes() {
				err = flush(b.Socket)
			}
			return sample, err
		}}
}

// drive runs one load with a polling driver. It turns the write cache on if the load writes.
func drive(ctx context.Context, socket string, o load.Options) (report.Sample, error) {
	o.Socket, o.Poll, o.Timeout = socket, true, patience
	if o.Writes() {
		on := true
		o.WCE = &on
	}
	r, err := load.Run(ctx, o)
	if err != nil {
		return report.Sample{}, err
	}
	if err := ctx.Err(); err != nil {
		return report.Sample{}, err
	}
	if r.Errors > 0 || r.Requests == 0 {
		return report.Sample{}, fmt.Errorf("%d requests succeeded, %d failed", r.Requests, r.Errors)
	}
	return sampleOf(r), nil
}

func sampleOf(r *load.Report) report.Sample {
	s := report.Sample{
		Requests: r.Requests, IOPS: r.IOPS, Bytes: r.BytesPerSecond, Driver: r.CPUDriver,
		Latency: report.Latencies{
			Mean: r.Latency.Mean, P50: float64(r.Latency.P50), P90: float64(r.Latency.P90),
			P99: float64(r.Latency.P99), P999: float64(r.Latency.P999), Max: float64(r.Latency.Max),
		},
	}
	if r.CPUBackend != nil {
		s.Server = *r.CPUBackend
	}
	for _, q := range r.Distribution {
		s.Curve = append(s.Curve, report.Quantile{Q: q.Q, Latency: float64(q.Latency)})
	}
	return s
}

// firstWriteTime is short, so that few of qcow2's clusters have been touched when it ends. A later
// write into a touched cluster is a first write to the guest but not to qcow2.
const firstWriteTime = 400 * time.Millisecond

// firstWrites returns random writes to a disk that owns nothing. The disk is made for every sample
// and discarded without a flush.
func (s *site) firstWrites(qd int) []task {
	workload := map[int]string{1: report.FirstQD1, 32: report.FirstQD32}[qd]
	o := load.Options{RW: load.RandWrite, QueueDepth: qd, Size: s.size, FirstWrite: true,
		Duration: min(s.time, firstWriteTime)}
	one := func(key, label string, make maker) task {
		return task{key, label, workload, true, func(ctx context.Context,
			round int) (report.Sample, error) {
			return s.onFresh(ctx, make, func(b *harness.Backend) (report.Sample, error) {
				o := o
				o.Seed = uint64(round)
				return drive(ctx, b.Socket, o)
			})
		}}
	}
	return []task{
		one(report.FreshHead, "cowblk, fresh head", s.freshDisk),
		one(report.Sparse, "cowblk pass-through, sparse file", s.freshSparse),
		one(report.FreshQcow2, "qemu qcow2, fresh overlay", s.freshOverlay),
	}
}
