package qmp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"cowblk/backend/qmp/link"

	"github.com/digitalocean/go-qemu/qmp"
)

// ErrClosed says that the monitor was closed.
var ErrClosed = errors.New("QEMU monitor is closed")

// ErrDisconnected says that the connection was lost before the reply. The command may have been
// executed.
var ErrDisconnected = link.ErrDisconnected

// MonitorOptions configures a Monitor.
type MonitorOptions struct {
	Log     *slog.Logger  // nil: nothing is logged
	Address Address       // of a QMP monitor without other clients: QEMU serves one at a time
	Timeout time.Duration // of connecting, and of a command whose context has no deadline; 0: 10 s
	Retry   time.Duration // maximum delay between attempts to connect; 0: 5 s
	Queue   int           // events queued for a subscriber; 0: 64; further ones are dropped
}

// Monitor is a connection to QEMU's monitor that reconnects when QEMU restarts. All methods may be
// called from any goroutine.
type Monitor struct {
	opts   MonitorOptions
	cancel context.CancelFunc
	ended  chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	link    *link.Link    // nil while disconnected
	linked  chan struct{} // closed when link is set; replaced when it is lost
	lastErr error         // of the last attempt to connect
	subs    []*Subscription
	closed  bool // no more subscriptions
}

// NewMonitor returns a Monitor that connects in the background.
func NewMonitor(o MonitorOptions) *Monitor {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.Retry = cmp.Or(o.Retry, 5*time.Second)
	o.Queue = cmp.Or(o.Queue, 64)
	ctx, cancel := context.WithCancel(context.Background())
	m := &Monitor{opts: o, cancel: cancel, ended: make(chan struct{}), linked: make(chan struct{})}
	go m.loop(ctx)
	return m
}

// Close disconnects. Pending commands fail with ErrClosed, and the channels of subscriptions are
// closed.
func (m *Monitor) Close() error {
	m.cancel()
	<-m.ended
	return nil
}

// loop connects, serves the connection until it breaks, and repeats.
func (m *Monitor) loop(ctx context.Context) {
	defer close(m.ended)
	defer m.endSubscriptions()
	wait := retryFirst
	for lastLogged := ""; ctx.Err() == nil; {
		dctx, cancel := context.WithTimeout(ctx, m.opts.Timeout)
		l, err := dial(dctx, m.opts.Address)
		cancel()
		if err == nil {
			m.opts.Log.Info("connected to QEMU's monitor", "address", m.opts.Address.String(),
				"version", l.Version())
			since := time.Now()
			stop := context.AfterFunc(ctx, func() { l.Conn().Close() })
			m.setLink(l, nil)
			err = l.Read(m.deliver)
			stop()
			m.setLink(nil, err)
			l.Close()
			if time.Since(since) > m.opts.Retry {
				lastLogged, wait = "", retryFirst // the peer did not hang up at once
			}
		} else {
			m.setLink(nil, err)
		}
		// The same error is logged once, however long it lasts: package loglimit would repeat it.
		if text := err.Error(); ctx.Err() == nil && text != lastLogged {
			lastLogged = text
			m.opts.Log.Warn("no connection to QEMU's monitor, retrying",
				"address", m.opts.Address.String(), "err", err)
		}
		_ = sleep(ctx, wait) // the loop ends with ctx
		wait = min(2*wait, m.opts.Retry)
	}
}

// dial connects and negotiates until ctx ends.
func dial(ctx context.Context, a Address) (*link.Link, error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	l, err := link.New(ctx, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: no greeting: is another client connected to this monitor?", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	return l, nil
}

func (m *Monitor) setLink(l *link.Link, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastErr = err
	if l != nil {
		close(m.linked)
	} else if m.link != nil {
		m.linked = make(chan struct{})
	}
	m.link = l
}

// waitLink waits for a connection.
func (m *Monitor) waitLink(ctx context.Context) (*link.Link, error) {
	for {
		m.mu.Lock()
		l, linked, last := m.link, m.linked, m.lastErr
		m.mu.Unlock()
		if l != nil {
			return l, nil
		}
		select {
		case <-linked:
		case <-m.ended:
			return nil, ErrClosed
		case <-ctx.Done():
			if last != nil {
				return nil, fmt.Errorf("%w: not connected: %w", ctx.Err(), last)
			}
			return nil, fmt.Errorf("%w: not connected", ctx.Err())
		}
	}
}

// Run executes a command, see Runner. It waits for a connection first. After ErrDisconnected, and
// when ctx has ended, it is unknown whether the command was executed; a late reply is dropped.
func (m *Monitor) Run(ctx context.Context, command string, args, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.opts.Timeout)
		defer cancel()
	}
	l, err := m.waitLink(ctx)
	if err == nil {
		var reply json.RawMessage
		reply, err = l.Run(ctx, command, args)
		if err == nil && out != nil {
			err = json.Unmarshal(reply, out)
		}
		if errors.Is(err, ErrDisconnected) {
			select {
			case <-m.ended:
				err = ErrClosed
			default:
			}
		}
	}
	if err != nil {
		return fmt.Errorf("QEMU monitor %s: %s: %w", m.opts.Address, command, err)
	}
	return nil
}

// instance returns the instance of the process behind the monitor; empty: not connected or unknown.
func (m *Monitor) instance() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link == nil {
		return ""
	}
	return peerInstance(m.link.Conn())
}

// Subscription receives events. Events are lost while the monitor is disconnected and when the
// queue is full.
type Subscription struct {
	C <-chan qmp.Event // closed by Close of the subscription or the monitor

	m     *Monitor
	ch    chan qmp.Event
	names []string // empty: all
	lost  int      // under m.mu
}

// Subscribe returns the events with these names, or all, from now on.
func (m *Monitor) Subscribe(names ...string) *Subscription {
	ch := make(chan qmp.Event, m.opts.Queue)
	s := &Subscription{C: ch, m: m, ch: ch, names: names}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		close(ch)
	} else {
		m.subs = append(m.subs, s)
	}
	return s
}

// Lost returns the number of events dropped because the queue was full.
func (s *Subscription) Lost() int {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return s.lost
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if i := slices.Index(s.m.subs, s); i >= 0 {
		s.m.subs = slices.Delete(s.m.subs, i, i+1)
		close(s.ch)
	}
}

// deliver sends an event to its subscribers without waiting.
func (m *Monitor) deliver(e qmp.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.subs {
		if len(s.names) > 0 && !slices.Contains(s.names, e.Event) {
			continue
		}
		select {
		case s.ch <- e:
		default:
			if s.lost++; s.lost == 1 {
				m.opts.Log.Warn("QEMU's events dropped: the subscriber does not read",
					"event", e.Event, "queue", cap(s.ch))
			}
		}
	}
}

func (m *Monitor) endSubscriptions() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.subs {
		close(s.ch)
	}
	m.subs, m.closed = nil, true
}
