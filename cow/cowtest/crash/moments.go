package crash

import (
	"math/rand/v2"

	"cowblk/cow/cowtest/faultfs"
)

// The tape records changes of files, but not stores to mapped memory. So the player notes copies of
// the whole machine at random moments: there the process can be killed, or the file system be lost
// and mounted again.

// moment notes a copy of the machine now and then. All goroutines of the process are waiting then.
func (pl *player) moment() {
	every := pl.life.Moments
	if every == 0 {
		every = 16
	}
	if pl.life.Fault != nil || pl.sched.syncFailed() || pl.moments.IntN(every) != 0 {
		return // the effect of a failed sync is noted when its caller has the error
	}
	pl.m.Mark(&note{text: "moment", step: func(*Oracle, int) {}, machine: pl.m.Clone()})
}

// giveTurn gives the next turn away; false: no call waits for one.
func (pl *player) giveTurn() bool {
	pl.moment()
	return pl.sched.next()
}

// momentsOf returns the positions of a tape with a copy of the whole machine.
func momentsOf(t *faultfs.Tape) (at []int) {
	for i, r := range t.Records {
		if r.Kind == faultfs.Mark && r.Note.(*note).machine != nil {
			at = append(at, i)
		}
	}
	return at
}

// killedAt returns the oracle's demands on a machine whose process was killed and nothing else: all
// completed writes are there.
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

// examineMoment kills the process at a moment. It also loses and mounts the file system there, with
// each of the choices.
func (l *Life) examineMoment(p *Played, d *faultfs.Device, o *Oracle, at int,
	choices []faultfs.Choice) (cuts int, err error) {
	m := p.Tape.Records[at].Note.(*note).machine
	fail := func(kind string, c faultfs.Choice, err error) error {
		return &Failure{Life: l, At: at, Kind: kind, Choice: c, Err: err, tail: tail(p.Tape, at, d)}
	}
	if err := checkMachine(m.Clone(), o.killedAt(at), at); err != nil {
		return 1, fail("process killed", d.All(), err)
	}
	p.count("cut: kill")
	cuts = 1
	for _, c := range choices {
		cuts++
		p.count("cut: remount")
		if err := checkMachine(d.Remount(c, m), o, at); err != nil {
			return cuts, fail("file system lost and mounted again", c, err)
		}
	}
	return cuts, nil
}

// checkMachine compares a machine with the oracle, and removes all disks, beginning with number
// first.
func checkMachine(m *faultfs.Machine, o *Oracle, first int) error {
	again := m.Clone()
	s, err := observe(m)
	var w *world
	if err == nil {
		w, err = o.check(s)
	}
	if err == nil {
		err = w.restoreManifests(m)
	}
	if err == nil {
		err = dismantle(again, s, w, first)
	}
	return err
}

// Ways in which a life of a chain can end for the next life.
const (
	endCut    = "power cut"
	endMount  = "remount"
	endReboot = "reboot"
)

// endOf returns the machine and the oracle after a life that ends in the given way. If no copy of
// the machine is known, a power cut replaces the remount.
func (l *Life) endOf(p *Played, how string, rng *rand.Rand) (m *faultfs.Machine, o *Oracle,
	at int) {
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
