package backend

import (
	"runtime"
	"time"

	"cowblk/eventfd"
	"cowblk/vhost/virtq"
)

// offer makes the chain at head available and kicks.
func (a *attacker) offer(head uint16) {
	a.ring.Offer(head)
	_ = eventfd.Signal(a.kick)
}

// drain takes an eventfd's count; false: it was not signalled.
func drain(fd int) bool {
	n, _ := eventfd.Drain(fd)
	return n > 0
}

// outcome waits until the used index has reached used, or the queue has said that it is broken.
func (a *attacker) outcome(used uint16) (broken bool) {
	a.t.Helper()
	a.until(func() bool {
		broken = drain(a.err)
		return broken || a.ring.UsedIdx() == used
	})
	return broken
}

// broke waits for the error eventfd alone: the ring may be gone.
func (a *attacker) broke() {
	a.t.Helper()
	a.until(func() bool { return drain(a.err) })
}

// until returns when done says so.
func (a *attacker) until(done func() bool) {
	a.t.Helper()
	for start, n := time.Now(), 0; !done(); n++ {
		switch {
		case n < 100:
			runtime.Gosched()
		case time.Since(start) > patience:
			a.t.Fatalf("nothing happens: %+v", a.to.dev.Stats())
		default:
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// request writes the header of slot i's request and returns the descriptors of the whole, whose
// data are given.
func (a *attacker) request(i uint64, typ uint32, sector uint64, data ...virtq.Desc) []virtq.Desc {
	b := a.mem.Bytes(atkMeta+16*i, 16)
	putHeader(b, typ, sector)
	a.mem.Bytes(atkStatus+i, 1)[0] = 0xee
	ds := append([]virtq.Desc{{Addr: atkMeta + 16*i, Len: 16}}, data...)
	return append(ds, virtq.Desc{Addr: atkStatus + i, Len: 1, Flags: virtq.DescWrite})
}

// status is what slot i's status byte holds; 0xee: nothing was written.
func (a *attacker) status(i uint64) byte { return a.mem.Bytes(atkStatus+i, 1)[0] }

// link writes ds as one chain from descriptor at on.
func (a *attacker) link(at uint16, ds []virtq.Desc) {
	for i, d := range ds {
		if i+1 < len(ds) {
			d.Flags |= virtq.DescNext
			d.Next = at + uint16(i) + 1
		}
		a.ring.SetDesc(at+uint16(i), d)
	}
}
