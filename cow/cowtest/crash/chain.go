package crash

import (
	"fmt"
	"math/rand/v2"

	"cowblk/cow/cowtest/faultfs"
)

// Chain is a machine that loses power again and again: each life begins with what
// a cut of the one before has left, recovery and all.
type Chain struct {
	Seed  uint64
	Lives int
	Steps int // of a life's script
	Cuts  int // random ones of a life, besides the one that ends it

	rng    *rand.Rand
	start  *faultfs.Machine
	before *Oracle
	state  *world
	next   int
}

// Next makes the next life; nil: the chain has ended.
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
	l.Script = Script(c.rng, c.state, c.Steps, fmt.Sprintf("%c", 'a'+c.next))
	return l
}

// Examine cuts the life's power at random, and once more for the next to begin
// with what that leaves.
func (c *Chain) Examine(l *Life, p *Played) (cuts int, err error) {
	cuts, err = l.Examine(p, Exam{Seed: l.Seed, Cuts: c.Cuts})
	if err != nil {
		return cuts, err
	}
	at := c.rng.IntN(len(p.Tape.Records))
	d, o := p.Tape.Play(), p.Before.clone()
	for i, r := range p.Tape.Records[:at+1] {
		d.Apply(r)
		if r.Kind == faultfs.Mark {
			r.Note.(*note).step(o, i)
		}
	}
	m := d.Image(d.Random(c.rng))
	s, err := observe(m.Clone())
	var w *world
	if err == nil {
		w, err = o.check(s)
	}
	if err != nil {
		return cuts + 1, fmt.Errorf("life %d of chain %d: %w", c.next, c.Seed, err)
	}
	o.pin(w, s)
	o.running = nil
	c.start, c.before, c.state = m, o, o.states[0]
	return cuts + 1, nil
}
