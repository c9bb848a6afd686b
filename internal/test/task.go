package test

import (
	"testing"
	"time"
)

// Task is a function that runs on a goroutine of its own.
type Task struct {
	done chan struct{}
	err  error // valid once done is closed
}

// Go starts f.
func Go(f func() error) *Task {
	k := &Task{done: make(chan struct{})}
	go func() { k.err = f(); close(k.done) }()
	return k
}

// Waits reports whether the task does not end for a while. On a slow machine it may be wrong, which
// makes a test pass, never fail.
func (k *Task) Waits() bool {
	select {
	case <-k.done:
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

// Wait waits for the end and returns the error of f.
func (k *Task) Wait() error {
	<-k.done
	return k.err
}

// Must waits until the task has ended, without an error.
func (k *Task) Must(t testing.TB) {
	t.Helper()
	select {
	case <-k.done:
		Must(t, k.err)
	case <-time.After(limit):
		t.Fatal("the task does not end")
	}
}
