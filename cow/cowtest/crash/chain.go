package crash

import (
	"fmt"
	"math/rand/v2"

	"cowblk/cow/cowtest/faultfs"
)

// Chain is a machine that loses power again and again. Each life begins with the state that a cut
// of the previous life has left, including recovery.
type Chain struct {
	Seed  uint64
	Lives int
	Steps int // of a life's script
	Cuts  int // random cuts of a life, besides the one that ends it
	// Moments is the number of moments of a life at which the process is killed, and the file
	// system lost and mounted again: see Exam.
	Moments int
	Counts  map[string]int // number of each kind of step and of cut

	rng    *rand.Rand
	start  *faultfs.Machine
	before *Oracle
	state  *world
	next   int
	end    string // how the life ends
}

// Next returns the next life; nil: the chain has ended.
func (c *Chain) Next() *Life {
	if c.rng == nil {
		c.rng = rand.New(rand.NewPCG(c.Seed, 3))
	}
	if c.next == c.Lives {
		return nil
	}
	c.next++
	depth := []int{1, 2, 4, 6}[c.rng.IntN(4)]
	l := &Life{Seed: c.rng.Uint64(), Depth: depth, Start: c.start, Before: c.before}
	c.end = []string{endCut, endCut, endMount, endReboot, endReboot}[c.rng.IntN(5)]
	// In order: all disks are closed before the machine is shut down.
	inOrder := c.end == endReboot && c.rng.IntN(3) > 0
	l.Script = Script(c.rng, c.state, c.Steps, fmt.Sprintf("%c", 'a'+c.next), inOrder)
	return l
}

// Examine cuts the life's power at random. Then it ends the life and keeps the state for the next
// one: after another cut, the loss of the file system alone, or an orderly shutdown of the machine.
func (c *Chain) Examine(l *Life, p *Played) (cuts int, err error) {
	cuts, err = l.Examine(p, Exam{Seed: l.Seed, Cuts: c.Cuts, Moments: c.Moments})
	if c.Counts == nil {
		c.Counts = map[string]int{}
	}
	c.Counts["end: "+c.end]++
	for what, n := range p.counts {
		c.Counts[what] += n
	}
	if err != nil {
		return cuts, err
	}
	m, o, at := l.endOf(p, c.end, c.rng)
	s, err := observe(m.Clone())
	var w *world
	if err == nil {
		w, err = o.check(s)
	}
	if err != nil {
		return cuts + 1, &Failure{Life: l, At: at, Kind: "end of the life by a " + c.end, Err: err}
	}
	o.fix(w, s)
	o.running = nil
	c.start, c.before, c.state = m, o, o.states[0]
	return cuts + 1, nil
}
