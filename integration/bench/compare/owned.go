package compare

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"cowblk/integration/bench/compare/report"
	"cowblk/vhost/frontend"
	"cowblk/vhost/load"
)

// ownedSet is a disk that owns blocks of the area in pieces of 4 KiB.
type ownedSet struct {
	contender
	qcow2  bool // an overlay, served by qemu-storage-daemon
	layers int  // of cowblk's disk, the head included
	// parts returns the blocks that each layer owns, oldest first, in the order of the writes
	parts func(blocks, layers int) [][]int
}

// ownedDisks returns cowblk's disks with scattered blocks.
func ownedDisks() (all []ownedSet) {
	all = []ownedSet{
		{contender{report.HeadRandom, "cowblk, head written in random order", true}, false, 1,
			allBlocks},
		{contender{report.HeadHalf, "cowblk, half of the blocks in the head", true}, false, 1,
			halfOfBlocks},
	}
	for _, n := range report.ScatteredDepths() {
		all = append(all, ownedSet{contender{report.Scattered(n),
			fmt.Sprintf("cowblk, blocks scattered over %d layers", n), false}, false, n,
			distributed})
	}
	return all
}

// ownedOverlays returns the qcow2 overlays in the same states.
func ownedOverlays() []ownedSet {
	return []ownedSet{
		{contender{report.QcowRandom, "qemu qcow2, written in random order", true}, true, 1,
			allBlocks},
		{contender{report.QcowHalf, "qemu qcow2, half of the blocks", false}, true, 1,
			halfOfBlocks},
	}
}

// ownedReaders returns the contenders that read the area. The head written in order is the one that
// the overwrites of this run use: they change no place of a block.
func ownedReaders() []contender {
	all := []contender{{report.Stack(1), "cowblk, base", true},
		{report.Head(1), "cowblk, head written in order", true}}
	for _, o := range append(ownedDisks(), ownedOverlays()...) {
		all = append(all, o.contender)
	}
	return all
}

// ownedSeed selects the order of the writes and the owners of the blocks: cowblk's disks and the
// overlays get the same ones.
const ownedSeed = 8

// allBlocks gives all blocks to the head, in random order.
func allBlocks(blocks, _ int) [][]int {
	return [][]int{rand.New(rand.NewPCG(ownedSeed, 0)).Perm(blocks)}
}

// halfOfBlocks gives half of the blocks to the head, at random.
func halfOfBlocks(blocks, layers int) [][]int {
	return [][]int{allBlocks(blocks, layers)[0][:blocks/2]}
}

// distributed gives every block to one of the layers, at random.
func distributed(blocks, layers int) [][]int {
	random := rand.New(rand.NewPCG(ownedSeed, uint64(layers)))
	parts := make([][]int, layers)
	for _, b := range random.Perm(blocks) {
		n := random.IntN(layers)
		parts[n] = append(parts[n], b)
	}
	return parts
}

// makeOwned makes the disks that the plan uses and serves them.
func (s *site) makeOwned(ctx context.Context, sets []ownedSet) error {
	plan := s.plan()
	for _, o := range sets {
		if !slices.ContainsFunc(plan, func(t task) bool { return t.contender == o.key }) {
			continue
		}
		if err := s.makeOne(ctx, o); err != nil {
			return fmt.Errorf("making %s: %w", o.key, err)
		}
	}
	return nil
}

func (s *site) makeOne(ctx context.Context, o ownedSet) (err error) {
	if o.qcow2 {
		err = s.makeChain(ctx, o.key, nil)
	} else if err = s.clone(ctx, o.key, 1); err == nil {
		err = s.startServer(ctx, o.key, s.serve(o.key))
	}
	if err != nil {
		return err
	}
	parts := o.parts(int(s.area/blockSize), o.layers)
	write := func(n int) error {
		return writeBlocks(ctx, s.servers[o.key].Socket, parts[n-1])
	}
	if o.layers > 1 {
		if err := s.makeLayers(ctx, o.key, o.layers-1, write); err != nil {
			return err
		}
	}
	return write(o.layers)
}

// writeBlocks writes random bytes to single blocks of a served disk, in this order, and flushes.
func writeBlocks(ctx context.Context, socket string, blocks []int) error {
	f, err := connect(socket)
	if err != nil {
		return err
	}
	w := &sweep{op: frontend.OpWrite, blocks: blocks, depth: 32}
	if _, err = w.run(ctx, f.Driver(0)); err == nil {
		err = f.Driver(0).Flush()
	}
	if err != nil {
		f.Abort()
		return err
	}
	return f.Close()
}

// ownedReads returns the reads of disks whose blocks the base, the head or many layers own.
func (s *site) ownedReads() (all []task) {
	for _, w := range []struct {
		key string
		o   load.Options
	}{
		{report.OwnedQD1, load.Options{RW: load.RandRead, QueueDepth: 1, Size: s.area}},
		{report.OwnedQD32, load.Options{RW: load.RandRead, QueueDepth: 32, Size: s.area}},
		{report.OwnedSeq, load.Options{RW: load.Read, BlockSize: 128 << 10, QueueDepth: 8,
			Size: s.area}},
	} {
		for _, c := range ownedReaders() {
			all = append(all, s.served(c, w.key, w.o))
		}
	}
	return all
}
