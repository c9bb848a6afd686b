package device

import "math/rand/v2"

// Drain makes each volatile sector durable with probability keep (0 to 1), as the cache of a disk
// may at any time.
func (d *Disk) Drain(keep float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drain(keep)
}

// Cut turns the power off: each volatile sector survives with probability keep; the others revert
// to the content of the last sync. Every request fails until PowerOn.
func (d *Disk) Cut(keep float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut(keep)
}

// CutAfter cuts the power at the n-th write or sync from now, which fails. Sectors of that write
// may survive. 0 cancels.
func (d *Disk) CutAfter(n int64, keep float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutAfter, d.keep = n, keep
}

// PowerOn ends Cut; it changes nothing else.
func (d *Disk) PowerOn() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.cutAfter = false, 0
}

// Fail replaces the faults.
func (d *Disk) Fail(f Faults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

// Freeze makes requests wait until Thaw.
func (d *Disk) Freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen = true
}

// Thaw lets the waiting requests continue, with the current faults.
func (d *Disk) Thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen = false
	d.thawed.Broadcast()
}

// Seed restarts the random choice of surviving sectors.
func (d *Disk) Seed(seed uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rng = rand.New(rand.NewPCG(seed, seed))
}

// Counters returns the current counts.
func (d *Disk) Counters() Counters {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.counters
	for _, pg := range d.volatile {
		for s := range sectorsPerPage {
			c.Volatile += int64(pg.valid >> s & 1)
		}
	}
	return c
}
