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

// signalContext returns a context that SIGINT, SIGTERM and SIGHUP end; another signal, after
// signalGrace, ends the process. SIGHUP is left out if it was ignored at the start (nohup). It starts
// one goroutine, which ends with stop.
func signalContext(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	stopped := make(chan struct{})
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
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
		select { // what comes meanwhile is not looked at
		case <-time.After(signalGrace):
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stopped); cancel(context.Canceled) })
}
