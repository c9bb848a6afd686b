package crash

import (
	"math/rand/v2"

	"cowblk/cow/cowtest/faultfs"
)

// The tape has what happened to files. What processes have stored in mapped memory is
// not on it, so the player notes copies of the whole machine at random moments: there
// the process can be killed, or the file system be lost and mounted again.

// moment notes the machine as it is now, now and then. All goroutines of the process
// wait for turns, or for nothing.
func (pl *player) moment() {
	every := pl.life.Moments
	if every == 0 {
		every = 16
	}
	if pl.life.Fault != nil || pl.sched.syncFailed() || pl.moments.IntN(every) != 0 {
		return // what a failed sync has lost is noted when somebody has heard of it
	}
	pl.m.Mark(&note{text: "moment", step: func(*Oracle, int) {}, machine: pl.m.Clone()})
}

// turnNow gives the next turn away; false: nobody waits for one.
func (pl *player) turnNow() bool {
	pl.moment()
	return pl.sched.next()
}

// momentsOf are the positions of a tape where the whole machine is known.
func momentsOf(t *faultfs.Tape) (at []int) {
	for i, r := range t.Records {
		if r.Kind == faultfs.Mark && r.Note.(*note).machine != nil {
			at = append(at, i)
		}
	}
	return at
}

// killedAt is what the oracle asks of a machine whose process was killed and on which
// nothing else has happened: all that has ended with success is there.
func (o *Oracle) killedAt(now int) *Oracle {
	c := o.clone()
	killed().step(c, now)
	for _, w := range c.states {
		for name := range w.disks {
			c.contents(name, func(c *content) { c.durable(now) })
		}
	}
	return c
}

// examineMoment kills the process at a moment, and loses and mounts the file system
// there, with each of the choices.
func (l *Life) examineMoment(p *Played, d *faultfs.Device, o *Oracle, at int, choices []faultfs.Choice) (cuts int, err error) {
	m := p.Tape.Records[at].Note.(*note).machine
	fail := func(kind string, c faultfs.Choice, err error) error {
		return &Failure{Life: l, At: at, Kind: kind, Choice: c, Err: err, tail: tail(p.Tape, at, d)}
	}
	if err := seen(m.Clone(), o.killedAt(at), at); err != nil {
		return 1, fail("process killed", d.All(), err)
	}
	p.count("cut: kill")
	cuts = 1
	for _, c := range choices {
		cuts++
		p.count("cut: remount")
		if err := seen(d.Remount(c, m), o, at); err != nil {
			return cuts, fail("file system lost and mounted again", c, err)
		}
	}
	return cuts, nil
}

// seen looks at a machine as the oracle does, and has all disks removed, beginning with number first.
func seen(m *faultfs.Machine, o *Oracle, first int) error {
	again := m.Clone()
	s, err := observe(m)
	var w *world
	if err == nil {
		w, err = o.check(s)
	}
	if err == nil {
		err = w.putBack(m)
	}
	if err == nil {
		err = dismantle(again, s, w, first)
	}
	return err
}

// Ways in which a life of a chain can end for the next one.
const (
	endCut    = "power cut"
	endMount  = "remount"
	endReboot = "reboot"
)

// endOf is the machine and the oracle after a life that ends in the given way. Without a
// moment at which the machine is known there is no remount, but a power cut.
func (l *Life) endOf(p *Played, how string, rng *rand.Rand) (m *faultfs.Machine, o *Oracle, at int) {
	at = len(p.Tape.Records) - 1
	var running *faultfs.Machine
	if moments := momentsOf(p.Tape); how == endMount && len(moments) > 0 {
		at = moments[rng.IntN(len(moments))]
		running = p.Tape.Records[at].Note.(*note).machine
	} else if how != endReboot {
		at = rng.IntN(len(p.Tape.Records))
	}
	d, o := p.Tape.Play(), p.Before.clone()
	for i, r := range p.Tape.Records[:at+1] {
		d.Apply(r)
		if r.Kind == faultfs.Mark {
			r.Note.(*note).step(o, i)
		}
	}
	switch {
	case running != nil:
		return d.Remount(d.Random(rng), running), o, at
	case how == endReboot:
		return d.Image(d.All()), o, at
	}
	return d.Image(d.Random(rng)), o, at
}
