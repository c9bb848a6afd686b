package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"cowblk/backend/control"
	"cowblk/backend/qmp"
	"cowblk/cow"
	"cowblk/cow/store"
)

// PromoteArgs are the arguments of cow-promote.
type PromoteArgs struct {
	Disks []string `json:"disks"`
	Tag   string   `json:"tag,omitempty"` // empty: the time
	qmp.Spec
	Timeout float64 `json:"timeout,omitempty"` // seconds, for quiescing and for thawing each; 0: 10
}

// Promoted answers cow-promote and is the data of COW_PROMOTED.
type Promoted struct {
	Disks    []PromotedDisk `json:"disks"`
	Tag      string         `json:"tag"`
	Quiesce  string         `json:"quiesce"`
	Trigger  string         `json:"trigger,omitempty"` // QEMU's event, if a hook promoted
	SwapTime float64        `json:"swap-microseconds"` // longest possible wait of a new write
	HeldTime float64        `json:"held-milliseconds"` // quiesced until thawed; 0: not quiesced
}

// PromotedDisk is one disk of a promotion.
type PromotedDisk struct {
	Disk   string `json:"disk"`
	Sealed string `json:"sealed"` // UUID of the former head
	Head   string `json:"head"`   // UUID of the new head
	Depth  int    `json:"depth"`  // number of layers now
}

// errPromoted wraps an error that came after the promotion.
var errPromoted = errors.New("the disks are promoted, but")

// promoteCommand is cow-promote.
func (d *Daemon) promoteCommand(ctx context.Context, args PromoteArgs) (any, error) {
	if err := d.checkReach(ctx, &args.Spec); err != nil {
		return nil, err
	}
	return d.promote(ctx, args, "")
}

// promote promotes disks of this process at one instant. After an error the guest runs on the old
// heads, unless the error wraps errPromoted.
func (d *Daemon) promote(ctx context.Context, args PromoteArgs, trigger string) (*Promoted, error) {
	exports, err := d.named(args.Disks)
	if err != nil {
		return nil, err
	}
	if d.manifests == nil {
		return nil, errors.New("this process serves raw files: there are no layers to promote")
	}
	if args.Mode == "" {
		if err := args.Check(); err != nil {
			return nil, err
		}
	}
	args.Spec.Instance = "" // this process finds out which run of the guest it is
	limit := guestLimit(args.Timeout)
	var guest *qmp.Handle
	if args.Active() {
		if guest, err = args.Open(d.log, d.monitorFor(args.QMP)); err != nil {
			return nil, err
		}
		defer guest.Close()
	}
	d.promoting.Lock()
	defer d.promoting.Unlock()
	if guest != nil {
		// Under the lock: an earlier promotion may have left a guest to be thawed.
		if err := d.waitThawed(ctx, args.Disks, limit); err != nil {
			return nil, err
		}
	}

	// Everything slow comes before the guest is quiesced.
	pending, err := d.manifests.Prepare(ctx, args.Disks, args.Tag)
	if err != nil {
		return nil, err
	}
	result := &Promoted{Tag: pending.Tag(), Quiesce: qmp.QuiesceNone, Trigger: trigger}
	c := swap{pending: pending, result: result}
	defer func() { pending.Close(c.swapped) }()
	defer c.cancel()
	if err := c.prepare(exports); err != nil {
		return nil, err
	}

	if guest == nil {
		err = c.commitAndSwap()
	} else {
		result.Quiesce = args.Mode
		err = d.swapQuiesced(ctx, &c, guest, args, limit)
	}
	if !c.swapped {
		return nil, err
	}
	d.manifests.set(pending.Manifests()...)
	d.log.Info("promoted", "disks", strings.Join(args.Disks, ", "), "tag", result.Tag,
		"quiesce", result.Quiesce, "trigger", trigger, "swap_us", result.SwapTime)
	d.emit("COW_PROMOTED", result)
	d.watchSeals(exports, c.promotions, result.Tag)
	if err != nil {
		return result, fmt.Errorf("%w %w", errPromoted, err)
	}
	return result, nil
}

// swapQuiesced swaps while the guest is quiesced. The record outlives this process if it is killed.
func (d *Daemon) swapQuiesced(
	ctx context.Context, c *swap, guest *qmp.Handle, args PromoteArgs, limit time.Duration,
) error {
	// A guest that cannot be reached was not touched: it needs no record.
	reach, cancel := context.WithTimeout(ctx, limit)
	instance, err := guest.Identify(reach)
	cancel()
	if err != nil {
		return fmt.Errorf("the guest was not quiesced: %w", err)
	}
	args.Spec.Instance = instance
	if err := d.manifests.SetQuiesceRecord(args.Disks, &args.Spec); err != nil {
		return err
	}
	if args.Mode == qmp.QuiescePause {
		defer d.hooks.beginPause()()
	}
	var held time.Time
	err = qmp.WhileQuiesced(ctx, guest, limit, limit, func(context.Context) error {
		held = time.Now()
		return c.commitAndSwap()
	})
	if !held.IsZero() {
		c.result.HeldTime = float64(time.Since(held).Microseconds()) / 1e3
	}
	if errors.Is(err, qmp.ErrNotThawed) {
		d.retryThaw(args.Disks, args.Spec) // the record stays until the guest continues
		return err
	}
	return errors.Join(err, d.manifests.SetQuiesceRecord(args.Disks, nil))
}

// guestLimit is the limit, given in seconds or 0, of reaching a guest, of quiescing it, and of
// thawing it.
func guestLimit(s float64) time.Duration {
	if s <= 0 {
		return qmp.QuiesceLimit
	}
	return seconds(s)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// swap is one swap of heads.
type swap struct {
	pending    *store.Pending
	promotions []*cow.Promotion
	swapped    bool
	result     *Promoted
}

// prepare makes sure that every disk will accept its new head.
func (c *swap) prepare(exports []*Export) error {
	for i, e := range exports {
		next := c.pending.Heads()[i]
		p, err := e.dev.Disk().Prepare(next)
		if err != nil {
			return fmt.Errorf("disk %q: %w", e.dev.Name(), err)
		}
		c.promotions = append(c.promotions, p)
		layers := e.dev.Disk().Layers()
		c.result.Disks = append(c.result.Disks, PromotedDisk{
			Disk: e.dev.Name(), Sealed: layers[len(layers)-1].UUID.String(),
			Head: next.Header().UUID.String(), Depth: len(layers) + 1,
		})
	}
	return nil
}

// cancel undoes prepare; after the swap it does nothing.
func (c *swap) cancel() {
	for _, p := range c.promotions {
		p.Cancel()
	}
}

// commitAndSwap commits the names of the new heads, then swaps the heads in. After a crash in
// between the new heads are in use and empty, which changes nothing.
func (c *swap) commitAndSwap() error {
	if err := c.pending.Commit(); err != nil {
		return err
	}
	start := time.Now()
	err := cow.Swap(c.promotions...)
	c.result.SwapTime = float64(time.Since(start).Nanoseconds()) / 1e3
	if err != nil {
		return errors.Join(err, c.pending.Revert())
	}
	c.swapped = true
	return nil
}

// watchSeals reports when the former heads are sealed, with one goroutine for each. They end with
// the exports at the latest: a former head that cannot be sealed is retried until its disk is
// closed, which is after Run.
func (d *Daemon) watchSeals(exports []*Export, promotions []*cow.Promotion, tag string) {
	d.mu.Lock()
	ctx := cmp.Or(d.serving, context.Background())
	d.mu.Unlock()
	for i, p := range promotions {
		name := exports[i].dev.Name()
		d.background.Go(func() {
			err := p.Sealed(ctx)
			if err != nil && err == ctx.Err() {
				return // the sealing goes on: closing the disk waits for it
			}
			if err != nil { // the disk has logged it
				d.log.Info("a former head is not sealed: the next start will seal it",
					"disk", name, "tag", tag)
				return
			}
			d.emit("COW_SEALED", map[string]string{"disk": name, "tag": tag})
			d.checksums.notify()
		})
	}
}

// named returns the exports of disks. A disk may be named once.
func (d *Daemon) named(disks []string) ([]*Export, error) {
	if len(disks) == 0 {
		return nil, errors.New("no disk is named")
	}
	all := d.snapshot()
	var found []*Export
	seen := map[string]bool{}
	for _, name := range disks {
		if seen[name] {
			return nil, fmt.Errorf("disk %q is named twice", name)
		}
		seen[name] = true
		n := len(found)
		for _, e := range all {
			if e.dev.Name() == name {
				found = append(found, e)
			}
		}
		if len(found) == n {
			return nil, &control.Error{Class: control.DeviceNotFound,
				Desc: fmt.Sprintf("disk %q is not served by this process", name)}
		}
	}
	return found, nil
}
