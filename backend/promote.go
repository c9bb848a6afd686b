package backend

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
	"cowblk/cow/layer"
)

// Names changes what names a disk's layers; the store behind it is the caller's.
type Names interface {
	// Prepare makes new, empty heads for the disks, durable but not named by
	// anything yet, and open for writing. An empty tag stands for the time.
	Prepare(ctx context.Context, disks []string, tag string) (Pending, error)
	// Note keeps, durably, that a guest of the disks is being quiesced, so that
	// the next process to serve one of them lets it go on if this one is killed;
	// nil takes the note back.
	Note(disks []string, spec *qmp.Spec) error
	// Tags are those of the disk's sealed layers.
	Tags(disk string) []string
	// Data is the path of the data of the disk's head; empty: none.
	Data(disk string) string
}

// Pending is one promotion of one or more disks, prepared.
type Pending interface {
	Tag() string
	// Heads are the new heads, in the order of the disks. A head that has been
	// swapped in belongs to its cow.Disk, the others to Close.
	Heads() []*layer.Layer
	// Commit names the new heads durably: all, or none, whatever happens.
	Commit() error
	// Revert undoes Commit, durably.
	Revert() error
	// Close gives up what was prepared and not committed; swapped says that
	// the heads have been swapped in.
	Close(swapped bool)
}

// PromoteArgs are the arguments of cow-promote.
type PromoteArgs struct {
	Disks []string `json:"disks"`
	Tag   string   `json:"tag,omitempty"` // empty: the time
	qmp.Spec
	Timeout float64 `json:"timeout,omitempty"` // seconds, of quiescing and of releasing the guest each; 0: 10
}

// Promoted answers cow-promote and is the data of COW_PROMOTED.
type Promoted struct {
	Disks    []PromotedDisk `json:"disks"`
	Tag      string         `json:"tag"`
	Quiesce  string         `json:"quiesce"`
	Trigger  string         `json:"trigger,omitempty"` // QEMU's event, if a hook did it
	SwapTime float64        `json:"swap-microseconds"` // new writes could wait this long at most
	HeldTime float64        `json:"held-milliseconds"` // from the guest's standing still to its going on; 0: not quiesced
}

// PromotedDisk is one disk of a promotion.
type PromotedDisk struct {
	Disk   string `json:"disk"`
	Sealed string `json:"sealed"` // UUID of the layer that was the head
	Head   string `json:"head"`   // UUID of the new one
	Depth  int    `json:"depth"`  // layers now
}

// errPromoted is wrapped around what went wrong after the cut.
var errPromoted = errors.New("the disks are promoted, but")

// promote cuts disks of this process at one instant. On an error the guest runs
// on the old heads, unless the error wraps errPromoted.
func (d *Daemon) promote(ctx context.Context, args PromoteArgs, trigger string) (*Promoted, error) {
	exports, err := d.named(args.Disks)
	if err != nil {
		return nil, err
	}
	if d.names == nil {
		return nil, errors.New("this process serves raw files: there are no layers to promote")
	}
	var guest *qmp.Handle
	if args.Mode == "" {
		if err := args.Check(); err != nil {
			return nil, err
		}
	}
	args.Spec.Instance = "" // which run it is, is for this process to find out
	if args.Active() {
		if guest, err = args.Open(d.log, d.monitorFor(args.QMP)); err != nil {
			return nil, err
		}
		defer guest.Close()
	}
	d.promoting.Lock()
	defer d.promoting.Unlock()
	if guest != nil {
		// Behind the lock: the promotion before may have left the guest to be let go.
		if err := d.awaitReleased(ctx, args.Disks, seconds(args.Timeout)); err != nil {
			return nil, err
		}
	}

	// All that takes time comes before the guest is touched.
	pending, err := d.names.Prepare(ctx, args.Disks, args.Tag)
	if err != nil {
		return nil, err
	}
	c := cut{daemon: d, pending: pending, exports: exports}
	defer func() { pending.Close(c.swapped) }()
	if err := c.reserve(); err != nil {
		return nil, err
	}
	defer c.cancel()

	result := &Promoted{Tag: pending.Tag(), Quiesce: qmp.QuiesceNone, Trigger: trigger}
	if guest == nil {
		err = c.make()
	} else {
		result.Quiesce = args.Mode
		err = d.cutQuiesced(ctx, &c, guest, args, result)
	}
	if !c.swapped {
		return nil, err
	}
	result.SwapTime = float64(c.took.Nanoseconds()) / 1e3
	for i, e := range exports {
		sealed := c.before[i]
		result.Disks = append(result.Disks, PromotedDisk{
			Disk: e.dev.name, Sealed: sealed.UUID.String(), Head: pending.Heads()[i].Header().UUID.String(), Depth: c.depth[i],
		})
	}
	d.log.Info("promoted", "disks", strings.Join(args.Disks, ", "), "tag", result.Tag, "quiesce", result.Quiesce, "trigger", trigger, "swap_us", result.SwapTime)
	d.emit("COW_PROMOTED", result)
	d.watchSeals(exports, c.promotions, result.Tag)
	if err != nil {
		return result, fmt.Errorf("%w %w", errPromoted, err)
	}
	return result, nil
}

// cutQuiesced makes the cut while the guest holds still. The note outlives this
// process if it is killed in between.
func (d *Daemon) cutQuiesced(ctx context.Context, c *cut, guest *qmp.Handle, args PromoteArgs, result *Promoted) error {
	limit := seconds(args.Timeout)
	// A guest that cannot be reached was not touched: nothing is noted.
	var err error
	if args.Spec.Instance, err = identify(ctx, guest, limit); err != nil {
		return fmt.Errorf("the guest was not quiesced: %w", err)
	}
	if err := d.names.Note(args.Disks, &args.Spec); err != nil {
		return err
	}
	if args.Mode == qmp.QuiescePause {
		defer d.hooks.pausing()()
	}
	var held time.Time
	err = qmp.Around(ctx, guest, limit, limit, func(context.Context) error {
		held = time.Now()
		return c.make()
	})
	if !held.IsZero() {
		result.HeldTime = float64(time.Since(held).Microseconds()) / 1e3
	}
	if errors.Is(err, qmp.ErrNotThawed) {
		d.keepReleasing(args.Disks, args.Spec) // the note stays until it goes on
		return err
	}
	return errors.Join(err, d.names.Note(args.Disks, nil))
}

func identify(ctx context.Context, guest *qmp.Handle, limit time.Duration) (string, error) {
	if limit <= 0 {
		limit = defaultQuiesceLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return guest.Identify(ctx)
}

// defaultQuiesceLimit is that of reaching a guest, and of quiescing and releasing it.
const defaultQuiesceLimit = 10 * time.Second

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// cut is the instant itself, and what it needs.
type cut struct {
	daemon     *Daemon
	pending    Pending
	exports    []*Export
	promotions []*cow.Promotion
	before     []layer.Header // the heads that are cut
	depth      []int
	swapped    bool
	took       time.Duration
}

// reserve makes sure that every disk will accept its new head.
func (c *cut) reserve() error {
	for i, e := range c.exports {
		p, err := e.dev.served().Prepare(c.pending.Heads()[i])
		if err != nil {
			c.cancel()
			return fmt.Errorf("disk %q: %w", e.dev.name, err)
		}
		c.promotions = append(c.promotions, p)
	}
	return nil
}

// cancel gives up what was reserved; after the swap it does nothing.
func (c *cut) cancel() {
	for _, p := range c.promotions {
		p.Cancel()
	}
}

// make names the new heads and swaps them in. The names come first: a crash in
// between leaves new heads without a block of their own, which changes nothing.
func (c *cut) make() error {
	for _, e := range c.exports {
		layers := e.dev.served().Layers()
		c.before = append(c.before, layers[len(layers)-1])
		c.depth = append(c.depth, len(layers)+1)
	}
	if err := c.pending.Commit(); err != nil {
		return err
	}
	start := time.Now()
	err := cow.Swap(c.promotions...)
	c.took = time.Since(start)
	if err != nil {
		return errors.Join(err, c.pending.Revert())
	}
	c.swapped = true
	return nil
}

// watchSeals tells when the former heads are sealed. One goroutine a promotion, which ends with the exports at the
// latest: a former head that cannot be sealed is tried again until its disk is closed, and that is after Run.
func (d *Daemon) watchSeals(exports []*Export, promotions []*cow.Promotion, tag string) {
	d.mu.Lock()
	ctx := cmp.Or(d.serving, context.Background())
	d.mu.Unlock()
	for i, p := range promotions {
		name := exports[i].dev.name
		d.background.Go(func() {
			err := p.Sealed(ctx)
			if err != nil && err == ctx.Err() {
				return // it is being sealed still: closing the disk waits for that
			}
			if err != nil {
				d.log.Error("a former head is not sealed; the next start does it", "disk", name, "tag", tag, "err", err)
				return
			}
			d.emit("COW_SEALED", map[string]string{"disk": name, "tag": tag})
			d.sums.look()
		})
	}
}

// named finds the exports of disks, each named once.
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
			if e.dev.name == name {
				found = append(found, e)
			}
		}
		if len(found) == n {
			return nil, &control.Error{Class: control.DeviceNotFound, Desc: fmt.Sprintf("disk %q is not served by this process", name)}
		}
	}
	return found, nil
}
