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
		select { // what comes meanwhile is not looked at
		case <-time.After(signalGrace):
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(stopped); cancel(context.Canceled) })
}

// quitDumps gives SIGQUIT back to Go's runtime, which prints every goroutine's stack and ends the
// process: of a server that hangs it is the last thing to ask.
func quitDumps() {
	if !signal.Ignored(syscall.SIGQUIT) {
		signal.Reset(syscall.SIGQUIT)
	}
}
