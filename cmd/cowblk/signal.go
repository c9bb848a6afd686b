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

// signalGrace is how long after the first signal others count as the same one: timeout(1) and terminals send one to a
// process and to its group.
const signalGrace = time.Second

// untilSignal is a context that SIGINT, SIGTERM, SIGHUP and SIGQUIT end; another one, after signalGrace, ends the process.
// SIGHUP and SIGQUIT count unless they were ignored when the process began (nohup, a shell's background). One goroutine,
// which ends with stop.
func untilSignal(parent context.Context) (ctx context.Context, stop func()) {
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
		select { // what comes meanwhile is not looked at
		case <-time.After(signalGrace):
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stopped); cancel(context.Canceled) })
}

// quitDumps gives SIGQUIT back to Go's runtime, which prints every goroutine's stack and ends the process: of a server
// that hangs it is the last thing to ask.
func quitDumps() {
	if !signal.Ignored(syscall.SIGQUIT) {
		signal.Reset(syscall.SIGQUIT)
	}
}
