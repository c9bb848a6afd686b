package index

import "fmt"

// scratch is memory for checkRaised, so that it allocates nothing in the long run.
type scratch struct{ before, after []Owner }

// owners appends the owners of the blocks of the page that begins at block first.
func (x *Index) owners(all []Owner, first uint64) []Owner {
	for end := min(first+pageBlocks, x.blocks); first < end; {
		o, n := x.Lookup(first, end-first)
		for range n {
			all = append(all, o)
		}
		first += n
	}
	return all
}

// checkRaised panics unless Raise of the blocks from first to before end to owner o has given each
// block of the page that begins at block start the owner that it must have: owners only rise, and
// only those of the blocks named.
func (x *Index) checkRaised(c *scratch, start, first, end uint64, o Owner) {
	c.after = x.owners(c.after[:0], start)
	for i, after := range c.after {
		want, b := c.before[i], start+uint64(i)
		if b >= first && b < end {
			want = max(want, o)
		}
		if after != want {
			panic(fmt.Sprintf(
				"index: block %d: owner %d after raising %d to %d to owner %d: expected %d", b,
				after, first, end, o, want))
		}
	}
}
