package load

import "cowblk/vhost/frontend"

// pattern generates the requests of a queue.
type pattern struct {
	rng       random
	offset    int64 // bytes, of the area
	blockSize int64
	blocks    uint64 // in the area
	readShare uint64 // a random number with upper 32 bits below it selects a read

	once       bool // each block once; next, step and order then belong to this queue
	sequential bool
	order      permutation
	next       uint64 // block number, or position in the order
	step       uint64
	first, end uint64 // of next
}

const always = 1 << 32

// newPattern returns the pattern of queue i. Sequential loads have a part of the area each; random
// ones share it. In random order each queue takes every Queues-th position.
func newPattern(o Options, blocks uint64, i int) pattern {
	p := pattern{
		rng:    newRandom(o.Seed, uint64(i)),
		offset: o.Offset, blockSize: int64(o.BlockSize), blocks: blocks,
		once: o.FirstWrite, sequential: o.RW == Read || o.RW == Write,
	}
	switch o.RW {
	case RandRead, Read:
		p.readShare = always
	case RandRW:
		p.readShare = uint64(o.ReadPercent) * always / 100
	}
	q, n := uint64(i), uint64(o.Queues)
	if p.sequential {
		each, more := blocks/n, blocks%n
		p.first, p.step = q*each+min(q, more), 1
		p.end = p.first + each
		if q < more {
			p.end++
		}
	} else {
		p.order = newPermutation(blocks, o.Seed)
		p.first, p.step, p.end = q, n, blocks
	}
	p.next = p.first
	return p
}

// take returns the next request; ok is false at the end.
func (p *pattern) take() (op frontend.Op, off int64, ok bool) {
	op = frontend.OpWrite
	if p.readShare == always || p.readShare > 0 && p.rng.next()>>32 < p.readShare {
		op = frontend.OpRead
	}
	var block uint64
	switch {
	case !p.sequential && !p.once:
		block = p.rng.below(p.blocks)
	case p.next >= p.end && p.once:
		return 0, 0, false
	default:
		if p.next >= p.end {
			p.next = p.first
		}
		block = p.next
		p.next += p.step
		if !p.sequential {
			block = p.order.at(block)
		}
	}
	return op, p.offset + int64(block)*p.blockSize, true
}
