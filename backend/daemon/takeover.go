package daemon

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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cowblk/backend/control"
	"cowblk/backend/takeover"
	"cowblk/cow"
)

// errTaken: another process serves the disk.
var errTaken = errors.New("another process serves the disk")

// Limits of a takeover. Commands and promotions wait during it.
const (
	// for commands, promotions and the sealing of former heads to end
	readyLimit   = time.Minute
	goLimit      = 30 * time.Second // for the new process to send go
	servingLimit = 30 * time.Second // for the new process to send serving
	// for a new process that has gone away to release the disks
	reopenLimit = 30 * time.Second
	reopenPoll  = 5 * time.Millisecond   // between two attempts
	takenGrace  = 500 * time.Millisecond // a process that has held the disks this long serves them
)

// takeoverSession is one attempt to hand the disks to another process. It runs on the control
// session's goroutine. Package takeover has the conversation.
type takeoverSession struct {
	daemon  *Daemon
	c       *takeover.Conn
	exports []*Export
	began   time.Time // when the exports were suspended
}

// serveTakeover is the control command takeover.Command.
func (d *Daemon) serveTakeover(ctx context.Context, conn *net.UnixConn, raw json.RawMessage) {
	h := &takeoverSession{daemon: d, c: takeover.NewConn(conn), exports: d.snapshot()}
	release, err := h.begin(ctx, raw)
	if err == nil {
		defer release()
		err = h.offer(ctx)
	}
	if err != nil {
		d.log.Error("a takeover was refused", "err", err)
		_ = h.c.Send(takeover.Message{Kind: takeover.Refused, Error: err.Error()})
		return
	}
	if err := h.detach(); err != nil {
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

// begin checks the request and blocks commands and promotions.
func (h *takeoverSession) begin(ctx context.Context, raw json.RawMessage) (release func(),
	err error) {
	d := h.daemon
	if err := h.check(raw); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	// Commands first: a promotion that is a command is then waited for by name.
	freed, err := d.control.SuspendCommands(ctx)
	if err != nil {
		return nil, err
	}
	if err := lockWithin(ctx, &d.promoting); err != nil {
		freed()
		return nil, fmt.Errorf("a promotion is under way: %w", err)
	}
	release = func() { d.promoting.Unlock(); freed() }
	if err := h.waitIdle(ctx); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func (h *takeoverSession) check(raw json.RawMessage) error {
	var a takeover.Args
	if err := control.Decode(raw, &a); err != nil {
		return err
	}
	if a.Version != takeover.Version {
		return fmt.Errorf("takeover version %d: this process speaks version %d: stop it, and start the other one then", a.Version, takeover.Version)
	}
	var served []string
	for _, e := range h.exports {
		served = append(served, e.dev.Name())
		if e.listener == nil {
			return fmt.Errorf(
				"disk %q is served on one connection only (--fd), which cannot be handed over",
				e.dev.Name())
		}
	}
	if h.daemon.opts.Store == nil {
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

// waitIdle waits until former heads are sealed, and flushes: a guest's flush that is in progress
// during the drain is then short.
func (h *takeoverSession) waitIdle(ctx context.Context) error {
	for _, e := range h.exports {
		if err := e.dev.Disk().Stats().Failed; err != nil {
			return fmt.Errorf("disk %q: %w: restart it on purpose, after having looked into it",
				e.dev.Name(), err)
		}
		for e.dev.Disk().Stats().Unsealed > 0 {
			select {
			case <-ctx.Done():
				return fmt.Errorf("disk %q: a former head is still being sealed: %w", e.dev.Name(),
					ctx.Err())
			case <-time.After(10 * time.Millisecond):
			}
		}
		if e.dev.ReadOnly() {
			continue
		}
		if err := e.dev.Disk().Flush(); err != nil && !cow.NoSpace(err) {
			return fmt.Errorf("disk %q: %w", e.dev.Name(), err)
		}
	}
	return ctx.Err()
}

// offer sends everything that can be sent while the disks are served, and waits for go.
func (h *takeoverSession) offer(ctx context.Context) error {
	for _, e := range h.exports {
		m := takeover.Message{Kind: takeover.Socket, Disk: e.dev.Name(),
			Path: e.listener.Addr().String(), KeepFile: e.listener.KeepsFile()}
		if err := h.pass(m, e.listener); err != nil {
			return err
		}
	}
	for _, l := range h.daemon.control.Listeners() {
		if err := h.pass(takeover.Message{Kind: takeover.Control, Path: l.Path(),
			KeepFile: l.KeepsFile()}, l); err != nil {
			return err
		}
	}
	if err := h.daemon.nbd.offer(h); err != nil {
		return err
	}
	if err := h.c.Send(takeover.Message{Kind: takeover.Ready}); err != nil {
		return err
	}
	h.c.Deadline(time.Now().Add(goLimit))
	defer h.c.Deadline(time.Time{})
	if _, err := h.c.Expect(takeover.Go); err != nil {
		return explainEOF(err)
	}
	return ctx.Err()
}

// pass sends a message with a duplicate of the descriptor of s.
func (h *takeoverSession) pass(m takeover.Message, s syscall.Conn) error {
	fd, err := control.Duplicate(s)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Path, err)
	}
	defer unix.Close(fd)
	m.FD = fd
	return h.c.Send(m)
}

// detach suspends all exports, detaches their disks and sends their connections.
func (h *takeoverSession) detach() error {
	h.began = time.Now()
	var wg sync.WaitGroup
	for _, e := range h.exports {
		wg.Go(e.suspend)
	}
	wg.Wait()
	for _, e := range h.exports {
		detached, err := e.detach()
		if !detached {
			return fmt.Errorf("disk %q: %w", e.dev.Name(), err)
		}
		if err != nil {
			h.daemon.log.Warn("a disk was detached with an error", "disk", e.dev.Name(), "err", err)
		}
	}
	for _, e := range h.exports {
		if conn := e.pendingConn(); conn != nil {
			if err := h.pass(takeover.Message{Kind: takeover.Connection, Disk: e.dev.Name()},
				conn); err != nil {
				return explainEOF(err)
			}
		}
	}
	return explainEOF(h.c.Send(takeover.Message{Kind: takeover.Detached}))
}

// awaitServing waits for serving. An error: the new process has gone, or hangs.
func (h *takeoverSession) awaitServing() error {
	h.c.Deadline(time.Now().Add(servingLimit))
	_, err := h.c.Expect(takeover.Serving)
	return explainEOF(err)
}

func explainEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) {
		return errors.New("the new process has gone")
	}
	return err
}

// end lets Run return and leaves the sockets' files to the new process.
func (h *takeoverSession) end() {
	for _, e := range h.exports {
		e.listener.SetKeepFile(true)
	}
	for _, l := range h.daemon.control.Listeners() {
		l.SetKeepFile(true)
	}
	h.daemon.nbd.keepFiles()
	h.daemon.log.Info("another process has taken over the disks", "after_ms",
		time.Since(h.began).Milliseconds())
	h.daemon.quit()
}

// resume opens detached disks again and continues to serve: the new process does not.
func (h *takeoverSession) resume(why error) {
	d := h.daemon
	d.log.Error("a takeover failed: this process continues", "err", why)
	for _, e := range h.exports {
		if e.detached {
			err := h.reopen(e)
			if errors.Is(err, errTaken) {
				h.end()
				return
			}
			if err != nil {
				d.log.Error("a disk cannot be opened again after a failed takeover", "disk",
					e.dev.Name(), "err", err)
				d.quit()
				return
			}
		}
		e.resume(e.opened.Disk)
	}
	d.log.Info("the disks are served again", "after_ms", time.Since(h.began).Milliseconds())
}

// reopen waits for the new process to release the disk, at its end at the latest. The new process
// may serve after all, with a message that came too late.
func (h *takeoverSession) reopen(e *Export) error {
	var taken time.Time
	for end := time.Now().Add(reopenLimit); ; time.Sleep(reopenPoll) {
		err := h.daemon.reopen(context.Background(), e)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errTaken):
			taken = time.Time{}
		case taken.IsZero():
			taken = time.Now()
		case time.Since(taken) > takenGrace:
			return err
		}
		if time.Now().After(end) {
			return err
		}
	}
}
