package crash

import (
	"errors"
	"fmt"

	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
)

// note is what the player puts on the tape: a step of the oracle at that position.
type note struct {
	text    string
	step    func(o *Oracle, now int)
	machine *faultfs.Machine // as it is here; nil: not known
	// tells: the oracle asks more of a cut from here on, or other things.
	tells bool
}

func (n *note) String() string { return n.text }

// began notes a write that is about to be submitted. The functions it returns note
// its end.
func began(disk string, id cowtest.Content, what string, ranges [][2]int64) (n *note, end func(ok, durable bool) *note) {
	key := &what // tells one write from all others in every copy of the oracle
	n = &note{text: "begin " + what, step: func(o *Oracle, now int) {
		w := &write{id: id, what: *key, begin: now, end: never}
		o.started(key, w)
		done := map[*content]bool{}
		for _, s := range o.states {
			if d := s.disks[disk]; d != nil && !done[d.content] {
				done[d.content] = true
				d.content.add(w, ranges)
			}
		}
	}}
	return n, func(ok, durable bool) *note {
		text := "end " + what
		if !ok {
			text = "failed: " + what
		}
		return &note{text: text, tells: durable, step: func(o *Oracle, now int) {
			w := o.running[key]
			delete(o.running, key)
			if w == nil { // its process was killed
				return
			}
			w.end, w.acked = now, ok
			if ok && durable {
				o.contents(disk, func(c *content) { c.replace(w) })
			}
		}}
	}
}

// flushed notes a flush that has succeeded, submitted at the given position.
func flushed(disk string, submitted int) *note {
	return &note{text: "flushed " + disk, tells: true, step: func(o *Oracle, _ int) {
		o.contents(disk, func(c *content) { c.durable(submitted) })
	}}
}

// changing notes that an operation has begun which takes the store from a state it
// is in to the one that f makes of it, in one step. f says whether it can.
func changing(what string, f func(w *world) bool) *note {
	return &note{text: "begin " + what, step: func(o *Oracle, _ int) {
		o.before = len(o.states)
		for _, w := range o.states {
			if after := w.clone(); f(after) {
				o.states = append(o.states, after)
			}
		}
	}}
}

// changed notes that the operation has succeeded.
func changed(what string) *note {
	return &note{text: "end " + what, tells: true, step: func(o *Oracle, _ int) {
		if o.states = o.states[o.before:]; len(o.states) == 0 {
			o.broken = errors.Join(o.broken, fmt.Errorf("%s succeeded, which it cannot have", what))
		}
	}}
}

// unsure notes that it has failed: from then on all states are possible, until one
// is seen.
func unsure(what string) *note {
	return &note{text: "failed: " + what, step: func(*Oracle, int) {}}
}

// refused notes that it has failed before it began.
func refused(what string) *note {
	return &note{text: "refused: " + what, step: func(o *Oracle, _ int) { o.states = o.states[:o.before] }}
}

// settled notes which disks and tags somebody has found who relies on them from now
// on.
func settled(what string, seen map[string][]string) *note {
	return &note{text: what, tells: true, step: func(o *Oracle, _ int) {
		fit := o.states[:0:0]
		for _, w := range o.states {
			if w.looksLike(seen) {
				fit = append(fit, w)
			}
		}
		if len(fit) > 0 { // else the next cut will show what is wrong
			o.states = fit
		}
	}}
}

// swapped notes the instant at which a tag's content parts from the disk's.
func swapped(disk string) *note {
	return &note{text: "swapped " + disk, step: func(o *Oracle, _ int) { o.part(disk) }}
}

// part takes what a disk holds now for its tags that were promised just that.
func (o *Oracle) part(disk string) {
	parted := map[*content]*content{}
	for _, w := range o.states {
		d := w.disks[disk]
		if d == nil {
			continue
		}
		for i := range d.tags {
			if t := &d.tags[i]; t.content == d.content {
				if parted[d.content] == nil {
					parted[d.content] = d.content.snapshot()
				}
				t.content = parted[d.content]
			}
		}
	}
}

// sealed notes what a tag has been read as once it could not change any more.
func sealed(disk, name string, p []byte) *note {
	return &note{text: "sealed " + disk + "@" + name, tells: true, step: func(o *Oracle, _ int) {
		o.part(disk) // it was promoted while stopped
		for _, w := range o.states {
			d := w.disks[disk]
			if d == nil {
				continue
			}
			t := d.tagged(name)
			if t == nil {
				continue
			}
			t.content.pin(p)
		}
	}}
}

// lost notes that a sync of a disk has failed: what was not durable may be gone.
func lost(disk string) *note {
	return &note{text: "lost " + disk, step: func(o *Oracle, _ int) {
		o.contents(disk, func(c *content) { c.lost() })
	}}
}

// killed notes the end of the process. What had completed is still there.
func killed() *note {
	return &note{text: "killed", step: func(o *Oracle, now int) {
		o.running = nil
		for _, w := range o.states {
			for name := range w.disks {
				o.contents(name, func(c *content) { c.died(now) })
				o.part(name)
			}
		}
	}}
}

// passedOver notes that a program of the version before shared maps has had a disk open
// that was not closed in order: it knows nothing of what was not flushed.
func passedOver(disk string) *note {
	return &note{text: "passed over " + disk, step: func(o *Oracle, now int) {
		for _, w := range o.states {
			if d := w.disks[disk]; d != nil {
				d.content.died(now)
				d.content.lost()
			}
		}
	}}
}

// foundTag is found of a tag.
func foundTag(disk, name string, p []byte) *note {
	return &note{text: "found " + disk + "@" + name, step: func(o *Oracle, now int) {
		var errs []error
		for _, w := range o.states {
			d := w.disks[disk]
			if d == nil || d.tagged(name) == nil {
				continue
			}
			c := d.tagged(name).content.clone()
			c.durable(now)
			err := c.check(p)
			if err == nil {
				return
			}
			errs = append(errs, err)
		}
		o.broken = errors.Join(append(errs, o.broken)...)
	}}
}

// found notes what a disk was read as, with nothing in flight and no power cut
// since what the oracle knows of: what has ended with success must be there,
// flushed or not.
func found(disk string, p []byte) *note {
	return &note{text: "found " + disk, tells: true, step: func(o *Oracle, now int) {
		var errs []error
		for _, w := range o.states {
			d := w.disks[disk]
			if d == nil {
				continue
			}
			c := d.content.clone()
			c.durable(now)
			err := c.check(p)
			if err == nil {
				return
			}
			errs = append(errs, err)
		}
		o.broken = errors.Join(append(errs, o.broken)...)
	}}
}

// visible notes what a disk was read as that is served from then on: it is as good as
// written now, so the next flush makes it durable.
func visible(disk string, p []byte) *note {
	return &note{text: "visible " + disk, step: func(o *Oracle, now int) {
		done := map[*content]bool{}
		for _, w := range o.states {
			if d := w.disks[disk]; d != nil && d.content.check(p) == nil && !done[d.content] {
				done[d.content] = true
				d.content.visible(p, now)
			}
		}
	}}
}
