package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"cowblk/cow/cowtest"
	"cowblk/cow/cowtest/faultfs"
	"cowblk/cow/store"
	"cowblk/cow/vfs"
)

// Life is one machine's life: a script carried out on it, recorded.
type Life struct {
	Script []Step
	Seed   uint64
	// Depth is the number of requests of a disk that overlap; 0: 1, one after the other.
	Depth int
	// Fault is called with the n-th call on files, from 1; nil: none fails.
	Fault func(n int, c faultfs.Call) faultfs.Fault
	// Start is the content of the machine, and Before the oracle's knowledge about it; nil: an
	// empty machine. Neither is changed.
	Start  *faultfs.Machine
	Before *Oracle
	// First is the number of the first write; 0: 2.
	First cowtest.Content
	// Moments: one in this many turns notes a copy of the machine; 0: 16. See Exam.
	Moments int
}

// Played is a life that has ended with the death of its process.
type Played struct {
	Machine       *faultfs.Machine // as it was then
	Tape          *faultfs.Tape
	Before        *Oracle // at the start of the tape
	Calls         int     // on files
	Next          cowtest.Content
	Errs          []error // of steps, in order; nil without faults
	DiedAt        int     // position on the tape of the death by "kill N"
	DiedAfterStep bool    // the death came after the step's end
	Broken        error   // a promise of the programs that was broken without a cut

	mu     sync.Mutex     // a promotion counts beside the steps
	counts map[string]int // number of steps and cuts of each kind
}

func (p *Played) count(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[what]++
}

// player carries a script out. It runs in a synctest bubble: all goroutines of the process are in
// it, and only one of them at a time gets a turn.
type player struct {
	life  *Life
	rng   *rand.Rand
	m     *faultfs.Machine
	p     *faultfs.Process
	s     *store.Store
	sched *schedule
	open  map[string]*served
	next  cowtest.Content
	holds map[string]*tagReader // tags that other processes have open
	// baseLock is the base, locked by another process with a lock of baseLockKind; nil: not locked.
	baseLock       vfs.File
	baseLockKind   string
	savedManifests map[string][]byte // by disk: manifests from before a step damaged them
	kills          int
	// moments decides where the machine is noted. It is not rng, which decides the order of calls.
	moments   *rand.Rand
	faults    int  // steps so far in which a call was made to fail
	fault     int  // call of the next step that fails; 0: none
	swapped   bool // the current promotion has swapped
	killAfter int  // changes after which the next step's process dies; 0: it does not
	jobs      int  // goroutines that work for the script, besides requests
	out       *Played
}

var errStuck = errors.New("no call is waiting and a step has not ended")

// Play carries the script out. It must run within synctest.Test.
func (l *Life) Play() (*Played, error) {
	pl := &player{life: l, rng: rand.New(rand.NewPCG(l.Seed, 1)),
		moments: rand.New(rand.NewPCG(l.Seed, 4)),
		next:    max(l.First, 2), open: map[string]*served{}, holds: map[string]*tagReader{},
		savedManifests: map[string][]byte{}}
	pl.m = faultfs.New()
	before := NewOracle()
	if l.Start != nil {
		pl.m, before = l.Start.Clone(), l.Before.clone()
	}
	putSources(pl.m)
	putBase(pl.m)
	for name, d := range before.states[0].damaged() {
		pl.savedManifests[name] = d.saved
	}
	pl.out = &Played{Machine: pl.m, Tape: pl.m.Record(), Before: before, counts: map[string]int{}}
	if err := pl.start(); err != nil {
		return nil, err
	}
	var err error
	for _, s := range l.Script {
		if err = pl.step(s); err != nil {
			err = fmt.Errorf("%s: %w", s, err)
			break
		}
	}
	if err == nil {
		err = pl.runUntil(func() bool { return pl.idle("") })
	}
	pl.kill()
	for _, key := range sortedKeys(pl.holds) {
		h := pl.holds[key]
		err = errors.Join(err, pl.release(Step{Verb: "release", Name: h.disk, Arg: h.tag}))
	}
	pl.out.Next = pl.next
	return pl.out, err
}

// start begins a process.
func (pl *player) start() (err error) {
	pl.sched = &schedule{rng: pl.rng, fault: pl.life.Fault, calls: pl.out.Calls}
	pl.p = pl.m.Process(pl.sched.hook)
	if pl.s, err = openStore(pl.p); err != nil && pl.life.Fault != nil {
		pl.out.Errs = append(pl.out.Errs, err)
		pl.s, err = openStore(pl.p) // the user tries again
	}
	return err
}

// kill ends the process at any point, and waits for its goroutines.
func (pl *player) kill() {
	synctest.Wait() // no goroutine is in a call: the same seed gives the same run
	pl.p.Kill()
	pl.markLost()
	pl.m.Mark(killed())
	pl.sched.release()
	pl.out.Calls = pl.sched.calls
	synctest.Wait()
	for !pl.idle("") {
		pl.collect(true)
		time.Sleep(time.Millisecond)
		synctest.Wait()
	}
	for _, v := range pl.open {
		v.closeDead()
	}
	pl.open = map[string]*served{}
	synctest.Wait()
}

// markLost notes for all open disks what a failed sync may have lost.
func (pl *player) markLost() {
	if pl.sched.syncFailed() {
		for _, name := range sortedKeys(pl.open) {
			pl.m.Mark(lost(name))
		}
	}
}

// turn lets one call on a file happen; false: none waits.
func (pl *player) turn() bool {
	synctest.Wait()
	pl.collect(false)
	return pl.giveTurn()
}

// runUntil lets calls happen until done returns true.
func (pl *player) runUntil(done func() bool) error {
	for idle := 0; ; {
		synctest.Wait()
		pl.collect(false)
		switch {
		case done():
			return nil
		case pl.giveTurn():
			idle = 0
		case idle > 10_000:
			return errStuck
		default:
			idle++
			time.Sleep(10 * time.Millisecond) // some goroutine waits for the clock
		}
	}
}

// run runs f, whose calls on files need turns, to its end.
func (pl *player) run(f func() error) (err error) {
	ended := false
	go func() { err = f(); ended = true }()
	if e := pl.runUntil(func() bool { return ended }); e != nil {
		return e
	}
	return err
}

// collect takes completed requests.
func (pl *player) collect(dead bool) {
	for _, name := range sortedKeys(pl.open) {
		pl.open[name].collect(dead)
	}
}

// idle reports whether nothing is in flight on a disk; "": on any disk.
func (pl *player) idle(name string) bool {
	if pl.jobs > 0 {
		return false
	}
	for n, v := range pl.open {
		if (name == "" || n == name) && v.busy() {
			return false
		}
	}
	return true
}

// failed notes an error of a step. Without faults it returns the error.
func (pl *player) failed(what string, err error) error {
	if pl.life.Fault == nil {
		return err
	}
	pl.out.Errs = append(pl.out.Errs, fmt.Errorf("%s: %w", what, err))
	return nil
}

// mayRefuse reports whether a step can have failed because an earlier step was incomplete: its
// process was killed, or a call failed.
func (pl *player) mayRefuse(err error) bool {
	return pl.interrupted() &&
		(errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrExists) ||
			errors.Is(err, store.ErrInvalid))
}

// refused reports whether a step was refused for a reason that the script has made.
func (pl *player) refused(s Step, err error) bool {
	if pl.refusedForDamage(s, err) || pl.refusedForLock(s, err) {
		pl.faults++ // later steps may miss this step's result
		return true
	}
	return pl.mayRefuse(err)
}

// interrupted reports whether an earlier step, or the step of a pending kill, may be incomplete.
func (pl *player) interrupted() bool {
	return pl.kills > 0 || pl.killAfter > 0 || pl.faults > 0 || pl.life.Fault != nil
}

func (pl *player) step(s Step) error {
	if s.guest() {
		return pl.request(s)
	}
	// A change of the store runs alone, except for live promotions.
	if s.Verb == "promote" {
		for _, name := range names(s.Name) {
			if pl.savedManifests[name] != nil && pl.open[name] != nil {
				return nil // the promotion would rewrite the manifest
			}
		}
		switch open, all := pl.openDisks(s); {
		case all:
			return pl.promoteLive(s)
		case open > 0 && pl.interrupted():
			return nil
		}
	}
	if s.Verb == "sum" {
		return pl.sum(s)
	}
	if s.Verb != "kill" {
		if err := pl.runUntil(func() bool { return pl.idle("") }); err != nil {
			return err
		}
	}
	if done, err := pl.auxiliaryStep(s); done {
		return err
	}
	switch s.Verb {
	case "open":
		return pl.openDisk(s)
	case "take-over":
		return pl.takeOver(s)
	case "close":
		return pl.closeDisk(s)
	case "stop":
		return pl.stopServed(s)
	case "kill":
		return pl.killStep(s)
	case "wait":
		return nil
	}
	if s.Verb == "rollback" && pl.open[s.Name] != nil {
		return nil // the script expected a kill in an open that did nothing
	}
	f, change, err := pl.storeStep(s)
	if err != nil {
		return err
	}
	pl.m.Mark(changing(s.String(), change))
	if pl.killAfter > 0 {
		return pl.runUntilKilled(s, f, nil)
	}
	if pl.fault > 0 {
		pl.sched.arm(pl.fault, pl.errno(), true, true)
		pl.fault = 0
	}
	reserve := pl.reserve()
	err = pl.run(f)
	pl.checkSpacePromise(s, reserve, err)
	fired, syncFailed := false, false
	if pl.sched.armed() {
		fired, syncFailed = pl.sched.disarm()
	}
	if fired {
		pl.faults++
		what := "fault: " + s.Verb
		if err == nil {
			what += ", done"
		}
		pl.out.count(what)
		if syncFailed {
			for _, name := range names(s.Name) {
				pl.m.Mark(lost(name))
			}
		}
	}
	if s.Verb == "remove-damaged" && pl.removedDamaged(s, err) {
		return nil
	}
	if err != nil {
		if s.Verb == "remove" && errors.Is(err, store.ErrInUse) {
			pl.m.Mark(imageInUse(s.String(), s.Name))
			pl.out.count("remove, image in use")
			return nil
		}
		if pl.refused(s, err) {
			pl.m.Mark(refused(s.String()))
			return nil
		}
		pl.m.Mark(unsure(s.String()))
		if s.Verb == "promote" { // the tag may exist, of a disk that is not being written
			for _, name := range names(s.Name) {
				pl.m.Mark(swapped(name))
			}
		}
		return pl.acceptFault(s, err)
	}
	pl.m.Mark(changed(s.String()))
	pl.out.count(s.Verb)
	if s.Verb == "import" && s.Arg != "" {
		pl.out.count("import of qcow2 " + s.Arg)
	}
	if s.Verb == "promote" {
		return pl.readTags(s)
	}
	return nil
}

// runUntilKilled carries a step out until it is killed. If the step ends first, the process is
// killed anyway. after, unless nil, releases what the step has left in this process.
func (pl *player) runUntilKilled(s Step, f func() error, after func()) error {
	var err error
	ended := false
	pl.jobs++
	go func() { err = f(); ended = true; pl.jobs-- }()
	for made := 0; made < pl.killAfter; {
		synctest.Wait()
		if ended {
			break
		}
		if pl.giveTurn() {
			made++
		} else {
			time.Sleep(10 * time.Millisecond)
		}
	}
	synctest.Wait()
	pl.killAfter = 0
	if ended {
		pl.out.DiedAfterStep = true
		// An image in use, or a disk that is served or not damaged.
		kept := strings.HasPrefix(s.Verb, "remove") && (errors.Is(err, store.ErrInUse) ||
			errors.Is(err, store.ErrInvalid))
		if err != nil && !pl.causedByFault(err) && !pl.refused(s, err) && !kept {
			return err
		}
		if err == nil && s.changesStore() {
			pl.m.Mark(changed(s.String()))
		}
	}
	pl.out.count("kill in " + s.Verb)
	pl.out.DiedAt = pl.m.Len()
	pl.kill()
	if after != nil {
		after()
		synctest.Wait()
	}
	pl.kills++
	return pl.start()
}

// storeStep returns the operation of a step on the store, and its effect on the world.
func (pl *player) storeStep(s Step) (f func() error, change func(*world) bool, err error) {
	ctx := context.Background()
	switch s.Verb {
	case "import":
		f, err := pl.importStep(s)
		return f, func(w *world) bool { return w.imported(s) }, err
	case "create":
		return func() error {
			o := store.CreateOptions{From: s.Arg, Size: s.Size, BlockSize: s.Unit}
			if s.Arg == baseFile {
				o.From, o.Base, o.ForceShare = "", baseFile, pl.baseLock != nil
			}
			_, err := pl.s.Create(ctx, s.Name, o)
			return err
		}, func(w *world) bool { return w.create(s) }, nil
	case "promote":
		return func() error {
			_, err := pl.s.Promote(ctx, names(s.Name), s.Arg)
			return err
		}, func(w *world) bool { return w.promote(s) }, nil
	case "rollback":
		return func() error {
			_, err := pl.s.Rollback(ctx, store.Ref{Name: s.Name, Tag: s.Arg})
			return err
		}, func(w *world) bool { return w.rollback(s) }, nil
	case "remove-damaged":
		return func() error {
			// A version without the index has no such command.
			now, err := openStore(pl.p)
			if err == nil {
				_, err = now.RemoveDamaged(ctx, s.Name)
			}
			return err
		}, func(w *world) bool { return w.damaged()[s.Name] != nil && w.remove(s) }, nil
	case "remove":
		return func() error {
			_, err := pl.s.Remove(ctx, s.Name)
			return err
		}, func(w *world) bool { return w.remove(s) }, nil
	}
	return nil, nil, fmt.Errorf("unknown step")
}
