package faultfs

import (
	"fmt"
	"math/rand/v2"
)

// Choice says which of the uncertain changes a power cut keeps.
type Choice struct {
	// Keep says for each pending change whether it is kept.
	Keep []bool
	// Torn, unless 0, is the seed of a decision about each sector of each data change that is kept.
	Torn uint64
	// NoData keeps only the new length of data changes, NoLength only the rest.
	NoData, NoLength bool
}

// String formats a Choice for a person: one letter for each pending change.
func (c Choice) String() string {
	s := make([]byte, len(c.Keep))
	for i, k := range c.Keep {
		s[i] = '-'
		if k {
			s[i] = 'K'
		}
	}
	switch {
	case c.Torn != 0:
		return fmt.Sprintf("%s torn %#x", s, c.Torn)
	case c.NoData:
		return string(s) + " lengths without data"
	case c.NoLength:
		return string(s) + " data without lengths"
	}
	return string(s)
}

// Image returns the machine after a power cut and a new start: with everything certain and the
// changes that the choice keeps.
func (d *Device) Image(c Choice) *Machine {
	t := d.tree.clone()
	keep := append([]bool(nil), c.Keep...)
	d.addDependencies(keep)
	for i, r := range d.pending {
		if keep[i] {
			commit(t, r, c.sectors(i, r))
		}
	}
	return newMachine(t, d.boots+1)
}

// All keeps everything, as an orderly shutdown does: all pending changes are written.
func (d *Device) All() Choice {
	c := Choice{Keep: make([]bool, len(d.pending))}
	for i := range c.Keep {
		c.Keep[i] = true
	}
	return c
}

// Remount returns the machine after its file system was lost and mounted again while the kernel ran
// on: the file system is as after a power cut, but files in memory (MemoryDir) and their mappings
// are as on running, which is the machine at this position of its tape. All processes are gone.
func (d *Device) Remount(c Choice, running *Machine) *Machine {
	m := d.Image(c)
	running.mu.Lock()
	defer running.mu.Unlock()
	m.tree.graft(running.tree.clone(), MemoryDir[1:])
	m.boots, m.mounts = running.boots, running.mounts+1
	m.clock, m.next, m.first, m.shared = running.clock, running.next, running.first,
		running.sharedNow()
	return m
}

func (c Choice) sectors(i int, r *Record) func(int64) bool {
	switch {
	case c.Torn != 0:
		return func(sector int64) bool { return hash(c.Torn, uint64(i), uint64(sector))&1 != 0 }
	case c.NoData:
		return func(sector int64) bool { return sector == lengthSector }
	case c.NoLength:
		return func(sector int64) bool { return sector != lengthSector }
	}
	return nil
}

// hash is splitmix64 over three words: a repeatable decision.
func hash(a, b, c uint64) uint64 {
	x := a
	for _, w := range [...]uint64{b, c} {
		x += 0x9e3779b97f4a7c15 + w
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
	}
	return x
}

// Choices makes distinct choices for the pending changes: none kept, all kept; each one alone, and
// all but each one, for up to singles changes; random subsets and random tearing, extra of each;
// lengths without data, data without lengths.
func (d *Device) Choices(rng *rand.Rand, singles, extra int) []Choice {
	n := len(d.pending)
	if n == 0 {
		return []Choice{{}}
	}
	var out []Choice
	seen := map[string]bool{}
	add := func(c Choice) {
		if s := c.String(); !seen[s] {
			seen[s] = true
			out = append(out, c)
		}
	}
	fill := func(b bool) []bool {
		k := make([]bool, n)
		for i := range k {
			k[i] = b
		}
		return k
	}
	add(Choice{Keep: fill(false)})
	add(Choice{Keep: fill(true)})
	order := rng.Perm(n)
	for _, i := range order[:min(n, singles)] {
		for _, b := range [2]bool{false, true} {
			k := fill(b)
			k[i] = !b
			add(Choice{Keep: k})
		}
	}
	subset := func(oneIn int) []bool {
		k := make([]bool, n)
		for i := range k {
			k[i] = rng.IntN(oneIn) == 0
		}
		return k
	}
	if n > 1 {
		for range extra {
			add(Choice{Keep: subset(2)})
		}
	}
	if d.tears() {
		for i := range extra {
			k := fill(true)
			if i%2 == 1 {
				k = subset(2)
			}
			add(Choice{Keep: k, Torn: rng.Uint64() | 1})
		}
		add(Choice{Keep: fill(true), NoData: true})
		add(Choice{Keep: fill(true), NoLength: true})
	}
	return out
}

// Random returns one random choice.
func (d *Device) Random(rng *rand.Rand) Choice {
	c := Choice{Keep: make([]bool, len(d.pending))}
	share := rng.IntN(5) // of 4
	for i := range c.Keep {
		c.Keep[i] = rng.IntN(4) < share
	}
	switch rng.IntN(6) {
	case 0, 1, 2:
		c.Torn = rng.Uint64() | 1
	case 3:
		c.NoData = true
	case 4:
		c.NoLength = true
	}
	return c
}

// tears reports whether any pending change can be kept in part.
func (d *Device) tears() bool {
	for _, r := range d.pending {
		if r.isData() {
			return true
		}
	}
	return false
}
