package qmp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotThawed says that the guest may still be frozen or paused: a person must act.
var ErrNotThawed = errors.New("the guest could not be thawed")

// Quiescer makes one guest hold still and lets it go on. For one user at a time.
type Quiescer interface {
	// Identify sees that the guest can be reached, before anything is done to it, and returns which run of it that is
	// (see Spec.Instance). After an error nothing holds still.
	Identify(ctx context.Context) (instance string, err error)
	// Freeze returns when the guest holds still, or with the reason why it does not.
	// After an error the guest's state may be unknown: Thaw must be called anyway.
	Freeze(ctx context.Context) error
	// Thaw undoes what Freeze did or may have done, and nothing that others did. It
	// tries again until the guest is known to go on or ctx ends, which gives
	// ErrNotThawed. Without a Freeze before, it does nothing.
	Thaw(ctx context.Context) error
}

// Around freezes, calls cut, and thaws, whatever became of the two and of ctx: Thaw has
// a deadline of its own. cut is not called when Freeze failed. The time limits are for
// Freeze and Thaw, 0 for 10 s each.
func Around(ctx context.Context, q Quiescer, freeze, thaw time.Duration, f func(context.Context) error) (err error) {
	defer func() {
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), orDefaultTimeout(thaw))
		defer cancel()
		if terr := q.Thaw(tctx); terr != nil {
			err = errors.Join(err, terr)
		}
	}()
	fctx, cancel := context.WithTimeout(ctx, orDefaultTimeout(freeze))
	defer cancel()
	if err := q.Freeze(fctx); err != nil {
		return fmt.Errorf("the guest was not quiesced: %w", err)
	}
	return f(ctx)
}

func orDefaultTimeout(d time.Duration) time.Duration {
	if d <= 0 {
		return 10 * time.Second
	}
	return d
}

// Retries of Thaw: a first try at once, then after growing waits.
const (
	retryFirst     = 50 * time.Millisecond
	retryMax       = time.Second
	attemptTimeout = 5 * time.Second // one try's own deadline, or a quarter of what is left
)

// retry calls try until it succeeds or ctx ends, and says how often it failed, and
// how the last time.
func retry(ctx context.Context, what, advice string, try func(context.Context) error) error {
	wait := retryFirst
	for n := 1; ; n++ {
		limit := attemptTimeout
		if end, ok := ctx.Deadline(); ok {
			limit = min(limit, max(time.Until(end)/4, retryFirst))
		}
		actx, cancel := context.WithTimeout(ctx, limit)
		err := try(actx)
		cancel()
		if err == nil || errors.Is(err, ErrGone) {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w: %s failed %d times, last with: %w: %s", ErrNotThawed, what, n, err, advice)
		}
		wait = min(2*wait, retryMax)
	}
}

// Runner runs QMP commands. args is marshalled to a JSON object, nil for none; the
// reply is unmarshalled into out unless that is nil. What QEMU reports as an error is
// a *control.Error.
type Runner interface {
	Run(ctx context.Context, command string, args, out any) error
}

// Pause stops the guest's processors, if they were running.
type Pause struct {
	run      Runner
	stopped  bool   // stop was sent and may have been executed
	recorded string // the instance of a note; empty: not known
	// gone is ErrGone if the guest is known to be no more; asked after a failure. Nil: its QEMU's socket says so.
	gone func(context.Context) error
}

// NewPause returns a Quiescer that sends stop and cont.
func NewPause(r Runner) *Pause { return &Pause{run: r} }

// status is QEMU's RunState (qapi/run-state.json).
func (p *Pause) status(ctx context.Context) (running bool, state string, err error) {
	var s struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	err = p.run.Run(ctx, "query-status", nil, &s)
	return s.Running, s.Status, err
}

// Identify asks for the guest's state.
func (p *Pause) Identify(ctx context.Context) (instance string, err error) {
	if _, _, err := p.status(ctx); err != nil {
		return "", err
	}
	if r, ok := p.run.(interface{ instance() string }); ok {
		instance = r.instance()
	}
	return instance, nil
}

// Freeze stops a guest that runs. One that does not holds still already, and stays so.
func (p *Pause) Freeze(ctx context.Context) error {
	running, _, err := p.status(ctx)
	if err != nil || !running {
		return err
	}
	p.stopped = true
	return p.run.Run(ctx, "stop", nil, nil)
}

// Thaw lets a guest go on that Freeze has stopped.
func (p *Pause) Thaw(ctx context.Context) error {
	if !p.stopped {
		return nil
	}
	return p.Resume(ctx)
}

// Resume lets a paused guest go on, whoever paused it: for a process that was killed
// between Freeze and Thaw and finds a note of its own about it.
func (p *Pause) Resume(ctx context.Context) error {
	err := retry(ctx, "cont", "run cont on QEMU's monitor", func(ctx context.Context) error {
		// A stop whose reply was lost has been executed before this is answered: QEMU
		// runs a monitor's commands in their order.
		running, state, err := p.status(ctx)
		if err != nil && p.gone != nil {
			if gone := p.gone(ctx); gone != nil {
				return gone
			}
		}
		err = goneIfRefused(p.recorded, err)
		// Any state but paused came of something else, such as a shutdown or an I/O
		// error, and cont would be refused or do harm.
		if err != nil || running || state != "paused" {
			return err
		}
		return p.run.Run(ctx, "cont", nil, nil)
	})
	if err == nil {
		p.stopped = false
	}
	return err
}
