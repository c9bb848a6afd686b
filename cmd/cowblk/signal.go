package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// signalError is the cause of a context that a signal has ended.
type signalError struct{ syscall.Signal }

func (e signalError) Error() string { return "interrupted by " + e.Signal.String() }

// signalGrace is the time after the first signal in which others count as the same one: timeout(1)
// and terminals send one to a process and to its group.
const signalGrace = time.Second

// signalContext returns a context that SIGINT, SIGTERM, SIGHUP and SIGQUIT end; another signal,
// after signalGrace, ends the process. SIGHUP and SIGQUIT are left out if they were ignored at the
// start (nohup, a shell's background). It starts one goroutine, which ends with stop.
func signalContext(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	stopped := make(chan struct{})
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	got := make(chan os.Signal, 1)
	signal.Notify(got, signals...)
	go func() {
		defer signal.Stop(got)
		select {
		case s := <-got:
			cancel(signalError{s.(syscall.Signal)})
		case <-stopped:
			return
		}
		select { // signals that arrive during this time count as the first
		case <-time.After(signalGrace):
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stopped); cancel(context.Canceled) })
}

// abandonable runs f in a goroutine and returns its result. If f has not returned grace after the
// end of ctx, returned is false, and f goes on until the process ends: it may be in a system call
// that nothing can interrupt, such as a read from a terminal or from a file server that is gone.
func abandonable[T any](ctx context.Context, grace time.Duration, f func() T) (result T,
	returned bool) {
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case result = <-done:
		return result, true
	case <-ctx.Done():
	}
	select {
	case result = <-done:
		return result, true
	case <-time.After(grace):
		return result, false
	}
}
