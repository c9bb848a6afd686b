package backend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/backend/takeover"
	"cowblk/cow"
)

// Keeper opens and closes the disks of a daemon, whose owner it is.
type Keeper interface {
	// Detach closes a disk for another process to go on with (cow.Disk.Detach) and
	// gives up the right to it. Unless it says that it has, nothing has happened.
	Detach(disk string) (detached bool, err error)
	// Reopen undoes Detach. ErrTaken: another process serves the disk.
	Reopen(ctx context.Context, disk string) (*cow.Disk, error)
}

// ErrTaken says that another process serves a disk.
var ErrTaken = errors.New("another process serves the disk")

// Limits of a handover. While it lasts commands and promotions wait.
const (
	readyLimit   = time.Minute            // until commands and promotions have ended and former heads are sealed
	goLimit      = 30 * time.Second       // for the new process to say go
	servingLimit = 30 * time.Second       // and that it serves
	reopenLimit  = 30 * time.Second       // for a new process that went away to let the disks go
	reopenPoll   = 5 * time.Millisecond   // between two tries
	takenGrace   = 500 * time.Millisecond // a process that has had the disks so long serves them
)

// handover is one try to hand this process's disks to another. It runs on the control
// session's goroutine. See package takeover for what is said.
type handover struct {
	daemon  *Daemon
	c       *takeover.Conn
	exports []*Export
	left    map[string]bool // disks that were detached
	began   time.Time       // when the exports were suspended
}

// handOver is the control command takeover.Command.
func (d *Daemon) handOver(ctx context.Context, conn *net.UnixConn, raw json.RawMessage) {
	h := &handover{daemon: d, c: takeover.NewConn(conn), exports: d.snapshot(), left: map[string]bool{}}
	release, err := h.begin(ctx, raw)
	if err == nil {
		defer release()
		err = h.offer(ctx)
	}
	if err != nil {
		d.log.Error("another process asked for the disks and does not get them", "err", err)
		_ = h.c.Send(takeover.Message{Kind: takeover.Refused, Error: err.Error()})
		return
	}
	if err := h.letGo(); err != nil {
		_ = h.c.Send(takeover.Message{Kind: takeover.Refused, Error: err.Error()})
		h.resume(err)
		return
	}
	if err := h.awaitServing(); err != nil {
		h.resume(err)
		return
	}
	h.end()
}

// begin checks what is asked for and makes everything wait that could come in between.
func (h *handover) begin(ctx context.Context, raw json.RawMessage) (release func(), err error) {
	d := h.daemon
	if err := h.check(raw); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	// Commands first: a promotion that is one of them is waited for by name.
	freed, err := d.control.SuspendCommands(ctx)
	if err != nil {
		return nil, err
	}
	if err := lockWithin(ctx, &d.promoting); err != nil {
		freed()
		return nil, fmt.Errorf("a promotion is under way: %w", err)
	}
	release = func() { d.promoting.Unlock(); freed() }
	if err := h.settle(ctx); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func (h *handover) check(raw json.RawMessage) error {
	var a takeover.Args
	if err := control.Decode(raw, &a); err != nil {
		return err
	}
	if a.Version != takeover.Version {
		return fmt.Errorf("takeover version %d: this process speaks version %d: stop it, and start the other one then", a.Version, takeover.Version)
	}
	var served []string
	for _, e := range h.exports {
		served = append(served, e.dev.name)
		if e.listener == nil {
			return fmt.Errorf("disk %q is served on one connection only (--fd), which cannot be handed over", e.dev.name)
		}
	}
	if h.daemon.keeper == nil {
		return errors.New("this process serves no disks of a store")
	}
	slices.Sort(served)
	slices.Sort(a.Disks)
	if !slices.Equal(served, a.Disks) {
		return fmt.Errorf("this process serves %s, all of which have to be taken over together; asked for were %s", strings.Join(served, ", "), strings.Join(a.Disks, ", "))
	}
	return nil
}

func lockWithin(ctx context.Context, mu *sync.Mutex) error {
	for !mu.TryLock() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// settle waits until former heads are sealed, and flushes: a guest's flush that is under
// way when the queues are drained, and is waited for, is then a short one.
func (h *handover) settle(ctx context.Context) error {
	for _, e := range h.exports {
		if err := e.dev.served().Stats().Failed; err != nil {
			return fmt.Errorf("disk %q: %w: restart it on purpose, after having looked into it", e.dev.name, err)
		}
		for e.dev.served().Stats().Unsealed > 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("disk %q: a former head is still being sealed: %w", e.dev.name, ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
		if e.dev.config.ReadOnly {
			continue
		}
		if err := e.dev.served().Flush(); err != nil && !lacksSpace(err) {
			return fmt.Errorf("disk %q: %w", e.dev.name, err)
		}
	}
	return ctx.Err()
}

// offer sends all that can be sent while the disks are served, and waits for go.
func (h *handover) offer(ctx context.Context) error {
	for _, e := range h.exports {
		keep := true
		if l, ok := e.listener.(*control.Listener); ok {
			keep = l.KeepsFile()
		}
		if err := h.pass(takeover.Message{Kind: takeover.Socket, Disk: e.dev.name, Path: e.listener.Addr().String(), KeepFile: keep}, e.listener); err != nil {
			return err
		}
	}
	for _, l := range h.daemon.control.Listeners() {
		if err := h.pass(takeover.Message{Kind: takeover.Control, Path: l.Path(), KeepFile: l.KeepsFile()}, l); err != nil {
			return err
		}
	}
	if err := h.daemon.readers.offer(h); err != nil {
		return err
	}
	if err := h.c.Send(takeover.Message{Kind: takeover.Ready}); err != nil {
		return err
	}
	h.c.Deadline(time.Now().Add(goLimit))
	defer h.c.Deadline(time.Time{})
	if _, err := h.c.Expect(takeover.Go); err != nil {
		return explainGone(err)
	}
	return ctx.Err()
}

// pass sends a message with a duplicate of what s is open on.
func (h *handover) pass(m takeover.Message, s socket) error {
	fd, err := control.Duplicate(s)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Path, err)
	}
	defer unix.Close(fd)
	m.FD = fd
	return h.c.Send(m)
}

// letGo suspends all exports, leaves their disks and tells what there is to know.
func (h *handover) letGo() error {
	h.began = time.Now()
	var wg sync.WaitGroup
	for _, e := range h.exports {
		wg.Go(e.suspend)
	}
	wg.Wait()
	for _, e := range h.exports {
		detached, err := h.daemon.keeper.Detach(e.dev.name)
		if !detached {
			return fmt.Errorf("disk %q: %w", e.dev.name, err)
		}
		if err != nil {
			h.daemon.log.Warn("a disk was detached with an error", "disk", e.dev.name, "err", err)
		}
		h.left[e.dev.name] = true
	}
	for _, e := range h.exports {
		if conn := e.kept(); conn != nil {
			if err := h.pass(takeover.Message{Kind: takeover.Connection, Disk: e.dev.name}, conn); err != nil {
				return explainGone(err)
			}
		}
	}
	return explainGone(h.c.Send(takeover.Message{Kind: takeover.Detached}))
}

// awaitServing waits for the new process's word. No word: it has gone, or hangs.
func (h *handover) awaitServing() error {
	h.c.Deadline(time.Now().Add(servingLimit))
	_, err := h.c.Expect(takeover.Serving)
	return explainGone(err)
}

func explainGone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) {
		return errors.New("the new process has gone")
	}
	return err
}

// end lets Run return, with the sockets' files left to the new process.
func (h *handover) end() {
	for _, e := range h.exports {
		if l, ok := e.listener.(*control.Listener); ok {
			l.SetKeepFile(true)
		}
	}
	for _, l := range h.daemon.control.Listeners() {
		l.SetKeepFile(true)
	}
	h.daemon.readers.keep()
	h.daemon.log.Info("another process has taken the disks over", "after_ms", time.Since(h.began).Milliseconds())
	h.daemon.quit()
}

// resume opens what was left again and goes on serving: the new process does not.
func (h *handover) resume(why error) {
	d := h.daemon
	d.log.Error("another process was to take the disks over and has not: this one goes on", "err", why)
	for _, e := range h.exports {
		disk := e.dev.served()
		if h.left[e.dev.name] {
			var err error
			disk, err = h.reopen(e.dev.name)
			if errors.Is(err, ErrTaken) {
				h.end()
				return
			}
			if err != nil {
				d.log.Error("a disk that was to be handed over cannot be opened again", "disk", e.dev.name, "err", err)
				d.quit()
				return
			}
		}
		e.resume(disk)
	}
	d.log.Info("the disks are served again", "after_ms", time.Since(h.began).Milliseconds())
}

// reopen waits for the new process to let the disk go, which it does at its end at the
// latest. It may be serving after all, and its word have come too late.
func (h *handover) reopen(name string) (disk *cow.Disk, err error) {
	var taken time.Time
	for end := time.Now().Add(reopenLimit); ; time.Sleep(reopenPoll) {
		disk, err = h.daemon.keeper.Reopen(context.Background(), name)
		switch {
		case err == nil:
			return disk, nil
		case !errors.Is(err, ErrTaken):
			taken = time.Time{}
		case taken.IsZero():
			taken = time.Now()
		case time.Since(taken) > takenGrace:
			return nil, err
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
}
