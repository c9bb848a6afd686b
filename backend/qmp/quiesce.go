package qmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotThawed says that the guest may still be frozen or paused, and a person must act.
var ErrNotThawed = errors.New("the guest could not be thawed")

// Quiescer quiesces and thaws one guest. It must be used by one goroutine at a time.
type Quiescer interface {
	// Identify checks that the guest can be reached and returns its instance (see Spec.Instance).
	// It does not change the guest.
	Identify(ctx context.Context) (instance string, err error)
	// Freeze returns when the guest is quiesced. After an error the guest's state may be unknown:
	// Thaw must be called in any case.
	Freeze(ctx context.Context) error
	// Thaw undoes what Freeze did or may have done, and nothing else. It retries until the guest is
	// known to run or ctx ends, which gives ErrNotThawed. Without Freeze it does nothing.
	Thaw(ctx context.Context) error
	// ForceThaw thaws the guest even if another process quiesced it. It is for the quiesce record
	// of a process that was killed between Freeze and Thaw. ErrGone: the guest no longer exists.
	ForceThaw(ctx context.Context) error
}

// WhileQuiesced freezes the guest, calls f, and thaws the guest in any case, even if ctx has ended.
// f is not called if Freeze fails. freeze and thaw are the time limits of Freeze and Thaw, 0 for
// QuiesceLimit each.
func WhileQuiesced(
	ctx context.Context, q Quiescer, freeze, thaw time.Duration, f func(context.Context) error,
) (err error) {
	defer func() {
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cmp.Or(thaw, QuiesceLimit))
		defer cancel()
		if terr := q.Thaw(tctx); terr != nil {
			err = errors.Join(err, terr)
		}
	}()
	fctx, cancel := context.WithTimeout(ctx, cmp.Or(freeze, QuiesceLimit))
	defer cancel()
	if err := q.Freeze(fctx); err != nil {
		return fmt.Errorf("the guest was not quiesced: %w", err)
	}
	return f(ctx)
}

// QuiesceLimit is the default time limit of Freeze, of Thaw, and of reaching a guest.
const QuiesceLimit = 10 * time.Second

// Retries of Thaw: the first attempt at once, then with increasing delays.
const (
	retryFirst     = 50 * time.Millisecond
	retryMax       = time.Second
	attemptTimeout = 5 * time.Second // of one attempt, at most a quarter of the remaining time
)

// retry calls try until it succeeds or ctx ends. Its error has the number of attempts and the last
// error.
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
		if sleep(ctx, wait) != nil {
			return fmt.Errorf("%w: %s failed %d times, last with: %w: %s",
				ErrNotThawed, what, n, err, advice)
		}
		wait = min(2*wait, retryMax)
	}
}

// sleep waits for d or the end of ctx, whose error it returns then.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Runner runs QMP commands. args is marshalled to a JSON object, nil for none; the reply is
// unmarshalled into out unless out is nil. An error reply of QEMU is a *control.Error.
type Runner interface {
	Run(ctx context.Context, command string, args, out any) error
}

// Pause stops the guest's processors if they run.
type Pause struct {
	run      Runner
	stopped  bool   // stop was sent and may have been executed
	recorded string // recorded instance; empty: unknown
	// ifGone returns ErrGone if a failed command shows that the guest is gone, else err.
	ifGone func(ctx context.Context, err error) error
}

// NewPause returns a Quiescer that sends stop and cont.
func NewPause(r Runner) *Pause {
	p := &Pause{run: r}
	p.ifGone = func(_ context.Context, err error) error { return goneIfRefused(p.recorded, err) }
	return p
}

// status returns QEMU's RunState (qapi/run-state.json).
func (p *Pause) status(ctx context.Context) (running bool, state string, err error) {
	var s struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	err = p.run.Run(ctx, "query-status", nil, &s)
	return s.Running, s.Status, err
}

// Identify queries the guest's state.
func (p *Pause) Identify(ctx context.Context) (instance string, err error) {
	if _, _, err := p.status(ctx); err != nil {
		return "", err
	}
	if r, ok := p.run.(interface{ instance() string }); ok {
		instance = r.instance()
	}
	return instance, nil
}

// Freeze stops a running guest. One that does not run is left as it is.
func (p *Pause) Freeze(ctx context.Context) error {
	running, _, err := p.status(ctx)
	if err != nil || !running {
		return err
	}
	p.stopped = true
	return p.run.Run(ctx, "stop", nil, nil)
}

// Thaw continues a guest that Freeze has stopped.
func (p *Pause) Thaw(ctx context.Context) error {
	if !p.stopped {
		return nil
	}
	return p.ForceThaw(ctx)
}

// ForceThaw continues a paused guest even if another process paused it.
func (p *Pause) ForceThaw(ctx context.Context) error {
	if err := goneIfEnded(p.recorded); err != nil {
		return err
	}
	err := retry(ctx, "cont", "run cont on QEMU's monitor", func(ctx context.Context) error {
		// QEMU runs the commands of a monitor in order, so a stop whose reply was lost has been
		// executed before this is answered.
		running, state, err := p.status(ctx)
		if err != nil {
			return p.ifGone(ctx, err)
		}
		// Any state but paused has another cause, such as a shutdown or an I/O error. cont would be
		// refused or do harm.
		if running || state != "paused" {
			return nil
		}
		return p.run.Run(ctx, "cont", nil, nil)
	})
	if err == nil {
		p.stopped = false
	}
	return err
}
