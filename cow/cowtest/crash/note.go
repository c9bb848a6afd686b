package crash

import (
	"errors"
	"fmt"

	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
)

// note is a step of the oracle that the player puts on the tape.
type note struct {
	text    string
	step    func(o *Oracle, now int)
	machine *faultfs.Machine // copy of the machine at this position; nil: none
	// tightens: the oracle's demands on a cut change here.
	tightens bool
}

func (n *note) String() string { return n.text }

// began notes a write that is about to be submitted. The returned function notes its end.
func began(disk string, id cowtest.Content, what string, ranges [][2]int64) (n *note,
	end func(ok, durable bool) *note) {
	key := &what // identifies the write in every copy of the oracle
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
		return &note{text: text, tightens: durable, step: func(o *Oracle, now int) {
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

// flushed notes a successful flush that was submitted at the given position.
func flushed(disk string, submitted int) *note {
	return &note{text: "flushed " + disk, tightens: true, step: func(o *Oracle, _ int) {
		o.contents(disk, func(c *content) { c.durable(submitted) })
	}}
}

// changing notes the begin of an operation that takes the store, in one step, from each possible
// state to the state that f makes of it. f returns false if it is impossible.
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
	return &note{text: "end " + what, tightens: true, step: func(o *Oracle, _ int) {
		if o.states = o.states[o.before:]; len(o.states) == 0 {
			o.broken = errors.Join(o.broken, fmt.Errorf("%s succeeded, which is impossible", what))
		}
	}}
}

// unsure notes that the operation has failed: all states stay possible until one is observed.
func unsure(what string) *note {
	return &note{text: "failed: " + what, step: func(*Oracle, int) {}}
}

// refused notes that the operation has failed before it began.
func refused(what string) *note {
	return &note{text: "refused: " + what, step: func(o *Oracle, _ int) {
		o.states = o.states[:o.before]
	}}
}

// reliedOn notes the disks and tags that a reader has found and relies on.
func reliedOn(what string, seen map[string][]string) *note {
	return &note{text: what, tightens: true, step: func(o *Oracle, _ int) {
		fit := o.states[:0:0]
		for _, w := range o.states {
			if w.looksLike(seen) {
				fit = append(fit, w)
			}
		}
		if len(fit) > 0 { // otherwise the next cut shows the mistake
			o.states = fit
		}
	}}
}

// swapped notes the instant at which the contents of a tag and its disk separate.
func swapped(disk string) *note {
	return &note{text: "swapped " + disk, step: func(o *Oracle, _ int) { o.splitTags(disk) }}
}

// splitTags gives the tags that share a disk's content a snapshot of it.
func (o *Oracle) splitTags(disk string) {
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

// sealed notes the content of a tag, read when it could no longer change.
func sealed(disk, name string, p []byte) *note {
	return &note{text: "sealed " + disk + "@" + name, tightens: true, step: func(o *Oracle, _ int) {
		o.splitTags(disk) // the disk was promoted while stopped
		for _, w := range o.states {
			d := w.disks[disk]
			if d == nil {
				continue
			}
			t := d.tagged(name)
			if t == nil {
				continue
			}
			t.content.fix(p)
		}
	}}
}

// lost notes that a sync of a disk has failed: writes that were not durable may be gone.
func lost(disk string) *note {
	return &note{text: "lost " + disk, step: func(o *Oracle, _ int) {
		o.contents(disk, func(c *content) { c.syncFailed() })
	}}
}

// killed notes the end of the process. Completed writes are kept.
func killed() *note {
	return &note{text: "killed", step: func(o *Oracle, now int) {
		o.running = nil
		for _, w := range o.states {
			for name := range w.disks {
				o.contents(name, func(c *content) { c.processDied(now) })
				o.splitTags(name)
			}
		}
	}}
}

// unflushedIgnored notes that a version before shared maps has opened a disk that was not closed in
// order: it ignores unflushed writes.
func unflushedIgnored(disk string) *note {
	return &note{text: "passed over " + disk, step: func(o *Oracle, now int) {
		for _, w := range o.states {
			if d := w.disks[disk]; d != nil {
				d.content.processDied(now)
				d.content.syncFailed()
			}
		}
	}}
}

// foundTag is found for a tag.
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

// found notes the content of a disk that was read with nothing in flight and no power cut since the
// oracle's last state: all completed writes must be there, flushed or not.
func found(disk string, p []byte) *note {
	return &note{text: "found " + disk, tightens: true, step: func(o *Oracle, now int) {
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

// visible notes the content of a disk that is served from now on. It counts as written now, so the
// next flush makes it durable.
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
