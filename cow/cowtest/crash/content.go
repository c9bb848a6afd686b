package crash

import (
	"fmt"
	"slices"
	"strings"

	"cowblk/cow/cowtest"
)

// never is the end of a write that is in flight.
const never = int(^uint(0) >> 1)

// write is one write, discard or write-zeroes. Times are positions on the tape.
type write struct {
	id    cowtest.Content
	what  string
	begin int
	end   int  // never: in flight
	acked bool // it ended with success
	below *content
}

// content is the possible content of a disk's or tag's sectors after a power cut: every write that
// has begun and is not replaced. A write is replaced by a write that began after its end and is
// certain to be durable.
type content struct {
	size    int64
	sectors [][]*write
}

// newContent returns a disk with the given content, and zeros after its end.
func newContent(size int64, below *content) *content {
	c := &content{size: size, sectors: make([][]*write, size/cowtest.SectorSize)}
	w := &write{id: cowtest.Zeros, what: "nothing", acked: true, below: below}
	for s := range c.sectors {
		c.sectors[s] = []*write{w}
	}
	return c
}

// newImage returns an image stamped with its own identity.
func newImage(size int64, id cowtest.Content) *content {
	c := newContent(size, nil)
	w := &write{id: id, what: "image", acked: true}
	for s := range c.sectors {
		c.sectors[s][0] = w
	}
	return c
}

// add records a write to byte ranges.
func (c *content) add(w *write, ranges [][2]int64) {
	for _, r := range ranges {
		for s := r[0] / cowtest.SectorSize; s < (r[0]+r[1])/cowtest.SectorSize; s++ {
			c.sectors[s] = append(c.sectors[s], w)
		}
	}
}

// durable forgets the writes replaced by acknowledged writes that ended before a time.
func (c *content) durable(before int) {
	for s, list := range c.sectors {
		if len(list) == 1 {
			continue
		}
		latest := -1
		for _, w := range list {
			if w.acked && w.end < before {
				latest = max(latest, w.begin)
			}
		}
		c.sectors[s] = slices.DeleteFunc(list, func(w *write) bool { return w.end < latest })
	}
}

// replace forgets the writes replaced by w, which is durable by itself.
func (c *content) replace(w *write) {
	for s, list := range c.sectors {
		if slices.Contains(list, w) {
			c.sectors[s] = slices.DeleteFunc(list, func(o *write) bool { return o.end < w.begin })
		}
	}
}

// snapshot returns the content at the instant of a promotion's swap. A write in flight may or may
// not be in it, and no flush decides this.
func (c *content) snapshot() *content {
	n := &content{size: c.size, sectors: make([][]*write, len(c.sectors))}
	copies := map[*write]*write{}
	for s, list := range c.sectors {
		n.sectors[s] = slices.Clone(list)
		for i, w := range n.sectors[s] {
			if w.end != never {
				continue
			}
			if copies[w] == nil {
				copies[w] = &write{id: w.id, what: w.what, begin: w.begin, end: never}
			}
			n.sectors[s][i] = copies[w]
		}
	}
	return n
}

// clone returns an independent copy.
func (c *content) clone() *content {
	n := &content{size: c.size, sectors: make([][]*write, len(c.sectors))}
	for s, list := range c.sectors {
		n.sectors[s] = slices.Clone(list)
	}
	return n
}

// syncFailed makes unflushed writes uncertain.
func (c *content) syncFailed() {
	for _, list := range c.sectors {
		if len(list) == 1 {
			continue
		}
		for _, w := range list {
			w.acked = false
		}
	}
}

// processDied ends the writes in flight when the process was killed: each has happened or not, and
// will not happen later. Completed writes are kept.
func (c *content) processDied(now int) {
	for _, list := range c.sectors {
		for _, w := range list {
			w.end = min(w.end, now)
		}
	}
}

// visible records content that was read as a write that ended now, where it was uncertain.
func (c *content) visible(p []byte, now int) {
	writes := map[cowtest.Content]*write{}
	for s, list := range c.sectors {
		if len(list) == 1 {
			continue
		}
		id := identify(p, int64(s))
		if writes[id] == nil {
			writes[id] = &write{id: id, what: "seen", begin: now, end: now, acked: true}
		}
		c.sectors[s] = append(list, writes[id])
	}
}

// fix makes the content that was read the only possible one.
func (c *content) fix(p []byte) {
	for s := range c.sectors {
		found := identify(p, int64(s))
		c.sectors[s] = []*write{{id: found, what: "found", acked: true}}
	}
}

// identify returns the content of one sector of a disk that was read as p. Torn and misplaced
// sectors were found before.
func identify(p []byte, sector int64) cowtest.Content {
	var room [4]cowtest.Content
	found, err := cowtest.Identify(p[sector*cowtest.SectorSize:][:cowtest.SectorSize], sector,
		room[:0])
	if err != nil || len(found) != 1 {
		return ^cowtest.Content(0)
	}
	return found[0]
}

// check returns an error if a disk was read with impossible content.
func (c *content) check(p []byte) error {
	if int64(len(p)) != c.size {
		return fmt.Errorf("expected %d bytes, found %d", c.size, len(p))
	}
	var room [8]cowtest.Content
	for s := range c.sectors {
		found, err := cowtest.Identify(p[s*cowtest.SectorSize:][:cowtest.SectorSize], int64(s),
			room[:0])
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c.history(s))
		}
		if len(found) > 1 {
			return fmt.Errorf("sector %d is torn between writes %d\n%s", s, found, c.history(s))
		}
		if !c.legal(s, found[0]) {
			return fmt.Errorf("sector %d shows write %d\n%s", s, found[0], c.history(s))
		}
	}
	return nil
}

func (c *content) legal(s int, found cowtest.Content) bool {
	if s >= len(c.sectors) {
		return found == cowtest.Zeros
	}
	for _, w := range c.sectors[s] {
		if w.below != nil && w.below.legal(s, found) || w.below == nil && w.id == found {
			return true
		}
	}
	return false
}

func (c *content) history(s int) string {
	var b strings.Builder
	b.WriteString("  legal:")
	for _, w := range c.sectors[s] {
		if w.below != nil {
			fmt.Fprintf(&b, "\n  the content below")
			if s < len(w.below.sectors) {
				b.WriteString(": " + w.below.history(s))
			}
			continue
		}
		end := fmt.Sprint(w.end)
		if w.end == never {
			end = "in flight"
		}
		fmt.Fprintf(&b, "\n  [%d, %s] write %d: %s", w.begin, end, w.id, w.what)
	}
	return b.String()
}
