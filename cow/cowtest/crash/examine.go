package crash

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"

	"cowblk/cow/cowtest/faultfs"
)

// workers is the number of images examined at once. It exceeds the number of processors, because
// opening and closing a disk waits for goroutines.
const workers = 4

// Exam says how a life is examined.
type Exam struct {
	Seed uint64
	// Every cuts the power after every record of the tape. Otherwise Cuts cuts are made at random
	// records.
	Every bool
	From  int  // the first record for Every
	Plain bool // Every keeps all uncertain changes or none
	Cuts  int
	// Moments is the number of random moments with a known whole machine at which the process is
	// killed, and the file system lost and mounted again. With Every: all of these moments.
	Moments int
	// Singles and Extra are parameters of faultfs.Device.Choices, for Every.
	Singles, Extra int
}

// Failure is a cut after which the store was wrong.
type Failure struct {
	Life   *Life
	At     int    // record after which the power failed
	Kind   string // what happened instead; "": a power cut
	Choice faultfs.Choice
	Err    error
	tail   []string
}

func (f *Failure) Error() string {
	kind := f.Kind
	if kind == "" {
		kind = endCut
	}
	return fmt.Sprintf("%v\n%s after record %d, seed %d, depth %d, keeping %s of\n  %s\nscript:\n%s",
		f.Err, kind, f.At, f.Life.Seed, f.Life.Depth, f.Choice, strings.Join(f.tail, "\n  "),
		Text(f.Life.Script))
}

// Examine cuts the power of a played life again and again, and checks the store each time. It
// returns the number of cuts and the first Failure.
func (l *Life) Examine(p *Played, x Exam) (cuts int, err error) {
	d, o := p.Tape.Play(), p.Before.clone()
	rng := rand.New(rand.NewPCG(x.Seed, 2))
	chosen := map[int]int{}
	for range x.Cuts {
		chosen[rng.IntN(len(p.Tape.Records)+1)-1]++
	}
	moments := map[int]bool{}
	if all := momentsOf(p.Tape); x.Every && x.Moments > 0 {
		for _, at := range all {
			moments[at] = at >= x.From-1
		}
	} else {
		for _, i := range rng.Perm(len(all))[:min(len(all), x.Moments)] {
			moments[all[i]] = true
		}
	}
	try := func(at int, choices []faultfs.Choice) error {
		cuts += len(choices)
		errs := make([]error, len(choices))
		var wg sync.WaitGroup
		slots := make(chan struct{}, workers)
		for i, c := range choices {
			m := d.Image(c) // changes d's tree: one after the other
			var again *faultfs.Machine
			if rng.IntN(4) == 0 {
				again = m.Clone()
			}
			first := rng.IntN(8)
			slots <- struct{}{}
			wg.Go(func() {
				s, err := observe(m)
				var w *world
				if err == nil {
					w, err = o.check(s)
				}
				if err == nil {
					err = w.restoreManifests(m)
				}
				if err == nil && again != nil {
					err = dismantle(again, s, w, first)
				}
				errs[i] = err
				<-slots
			})
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				return &Failure{Life: l, At: at, Choice: choices[i], Err: err,
					tail: tail(p.Tape, at, d)}
			}
		}
		return nil
	}
	for at := -1; at < len(p.Tape.Records); at++ {
		tells := true
		if at >= 0 {
			r := p.Tape.Records[at]
			d.Apply(r)
			if r.Kind == faultfs.Mark {
				n := r.Note.(*note)
				n.step(o, at)
				if o.broken != nil {
					return cuts, &Failure{Life: l, At: at, Err: o.broken, tail: tail(p.Tape, at, d)}
				}
				tells = n.tightens
			}
		}
		var choices []faultfs.Choice
		if x.Every && tells && at >= x.From-1 {
			if choices = d.Choices(rng, x.Singles, x.Extra); x.Plain {
				choices = choices[:min(2, len(choices))]
			}
		}
		for range chosen[at] {
			choices = append(choices, d.Random(rng))
		}
		p.counts["cut: power"] += len(choices)
		if err := try(at, choices); err != nil {
			return cuts, err
		}
		if moments[at] {
			some := []faultfs.Choice{d.Random(rng)}
			if x.Every {
				some = append(d.Choices(rng, 0, 1), some...)
			}
			k, err := l.examineMoment(p, d, o, at, some)
			cuts += k
			if err != nil {
				return cuts, err
			}
		}
	}
	return cuts, nil
}

// tail returns the pending changes, and the last records.
func tail(t *faultfs.Tape, at int, d *faultfs.Device) []string {
	var out []string
	for _, r := range d.Pending() {
		out = append(out, r.String())
	}
	out = append(out, "of which the last records before were")
	for i := max(0, at-30); i <= at; i++ {
		out = append(out, fmt.Sprintf("%4d %s", i, t.Records[i]))
	}
	return out
}
